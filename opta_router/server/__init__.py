"""The HTTP server: Hypercorn's protocols, run so that no client can hold memory, descriptors or a shutdown.

Put `HostGuard` and `BodyLimit` in front of every application that it serves.
"""

from opta_router.server.binding import BindError
from opta_router.server.body_limit import BodyLimit
from opta_router.server.host_guard import HostGuard
from opta_router.server.lifespan import LifespanEndedError
from opta_router.server.limits import ServerLimits, make_room
from opta_router.server.refusal import RenderError, refuse
from opta_router.server.repairs import UnrepairedHypercornError
from opta_router.server.repairs.app_queue import ON_DISCONNECT
from opta_router.server.runner import serve
from opta_router.server.signals import StopSignals, stop_signals

__all__ = [
    "ON_DISCONNECT",
    "BindError",
    "BodyLimit",
    "HostGuard",
    "LifespanEndedError",
    "RenderError",
    "ServerLimits",
    "StopSignals",
    "UnrepairedHypercornError",
    "make_room",
    "refuse",
    "serve",
    "stop_signals",
]
