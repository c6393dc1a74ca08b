"""The front door of the two lanes: HTTP, API dialects, admission, dispatch, telemetry, command line."""
