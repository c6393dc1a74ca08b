"""What operators look at, built by code: ``python -m deploy.dashboards`` writes the files that :mod:`.files` names.

Names of metrics and attributes stand here as operators query them. ``tests/observability`` holds every query against a
Prometheus and against traces of a working service.
"""
