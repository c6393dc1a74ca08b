"""How ``opta-tiny`` was made. Four steps, each a command; see ``../TRAINING.md`` for what they printed.

::

    uv run python -m lanes.embedded.training.corpus --stdlib /path/to/lib/python3.13 --out build/opta-tiny
    uv run --with torch python -m lanes.embedded.training.train --data build/opta-tiny --out build/opta-tiny/models
    uv run python -m lanes.embedded.training.export --models build/opta-tiny/models --data build/opta-tiny
    uv run opta-router bench pair
"""
