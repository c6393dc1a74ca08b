"""Every bound of the HTTP server, in one place."""

from __future__ import annotations

import logging
import resource
from dataclasses import dataclass

_log = logging.getLogger("opta_router.server")

_KIB = 1024
_MIB = 1024 * _KIB

# Descriptors that are not client connections: the event loop, the link to the host, logs, exporters, files being read.
_OWN_DESCRIPTORS = 64
_FEWEST_CONNECTIONS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """What one server accepts and how long it waits.

    Attributes:
        backlog: Connections that the kernel queues, and that the loop accepts in one go.
        max_connections: Open client connections; one more gets 503. None: as many as RLIMIT_NOFILE leaves room for.
        max_header_bytes: Request line and headers together.
        header_timeout_s: From the first byte (or the connection) to the end of the headers.
        keep_alive_timeout_s: How long a connection may wait for its next request.
        write_stall_s: A peer that takes not a byte of what is waiting for it is cut after this.
        linger_s: After our last byte has left for the kernel, how long the peer has to close before it is reset.
        send_buffer_bytes: What the kernel may hold for one connection (Linux doubles it). Left alone it grows to
            megabytes, all of which a slow reader has to take before the server sees it move.
        h2_max_concurrent_streams: Requests at a time on one HTTP/2 connection.
        h2_max_resets_per_s: Streams that an HTTP/2 peer may open and cancel (CVE-2023-44487).
        websocket_max_message_bytes: One incoming message; for text, characters.
        startup_timeout_s: For the application's lifespan startup.
        drain_timeout_s: After the shutdown trigger, how long running requests may take before they are cut.
        cut_timeout_s: After that, how long applications have for their clean-up: once when told that their client is
            gone, again when cancelled, and again for a lifespan that was cancelled.
        shutdown_timeout_s: For the application's lifespan shutdown.
    """

    backlog: int = 100
    max_connections: int | None = None
    max_header_bytes: int = 16 * _KIB
    header_timeout_s: float = 5.0
    keep_alive_timeout_s: float = 75.0
    write_stall_s: float = 10.0
    linger_s: float = 2.0
    send_buffer_bytes: int = 64 * _KIB
    h2_max_concurrent_streams: int = 32
    h2_max_resets_per_s: int = 100
    websocket_max_message_bytes: int = 4 * _MIB
    startup_timeout_s: float = 60.0
    drain_timeout_s: float = 30.0
    cut_timeout_s: float = 1.0
    shutdown_timeout_s: float = 10.0


def make_room(limits: ServerLimits) -> None:
    """Raise the soft limit of descriptors as far as `max_connections` needs and the hard limit allows.

    No further: whatever this process starts inherits it. What is missing in the end, `connection_cap` takes off.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limits.max_connections is None or soft == resource.RLIM_INFINITY:
        return
    needed = limits.max_connections + _OWN_DESCRIPTORS + limits.backlog
    raised = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if raised > soft:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
        except (OSError, ValueError) as error:  # macOS allows less than its hard limit says
            _log.warning("the limit of %d descriptors cannot be raised to %d: %s", soft, raised, error)
    cap = connection_cap(limits)
    if cap < limits.max_connections:
        _log.warning(
            "server.max_connections is %d; the system's limit of descriptors allows %d", limits.max_connections, cap
        )


def connection_cap(limits: ServerLimits) -> int:
    """Connections to serve at a time, so that descriptors never run out.

    asyncio accepts up to `backlog` connections before any of them can be refused, so those stay in reserve, too; at
    exhaustion it would log a traceback for each attempt (CPython gh-151615).
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return limits.max_connections or 65_536
    room = max(_FEWEST_CONNECTIONS, soft - _OWN_DESCRIPTORS - limits.backlog)
    return room if limits.max_connections is None else min(limits.max_connections, room)
