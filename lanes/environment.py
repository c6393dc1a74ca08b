"""What a router tells its host in the environment, under which names."""

from typing import Final

TOKEN_VARIABLE: Final = "OPTA_HOST_TOKEN"  # noqa: S105 - the name of a variable
"""What the host's Hello must repeat."""

HEARTBEAT_FD_VARIABLE: Final = "OPTA_HEARTBEAT_FD"
"""The inherited descriptor of the page that the device loop writes; see :mod:`lanes.heartbeat`."""
