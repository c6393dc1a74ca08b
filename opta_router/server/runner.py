"""Start, serve, drain, stop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config

from opta_router.server.binding import bind_error, bind_socket, url_of
from opta_router.server.lifespan import LifespanRun
from opta_router.server.limits import ServerLimits, connection_cap
from opta_router.server.race import Trigger, first_of, never
from opta_router.server.repairs import require_repaired_version
from opta_router.server.repairs.connection import Connection

ASGIApp = Callable[[Any, Any, Any], Awaitable[None]]

_log = logging.getLogger("opta_router.server")
_FULL = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_UNLIMITED = 2**31


async def serve(
    app: ASGIApp,
    *,
    host: str,
    port: int,
    shutdown_trigger: Trigger,
    cut_trigger: Trigger = never,
    limits: ServerLimits | None = None,
    on_bound: Callable[[str], None] | None = None,
) -> None:
    """Serve `app` over HTTP/1.1, HTTP/2 (prior knowledge) and WebSocket until `shutdown_trigger` returns.

    The address is bound first, then the application's lifespan starts, then connections are accepted and `on_bound`
    gets the URL with the real port. After the trigger no connection is accepted; running requests have
    `drain_timeout_s`, or until `cut_trigger` returns, then they are cut: all in all it ends within that and
    `3 * cut_timeout_s + shutdown_timeout_s`. A cancellation does what the trigger does; the next one cuts.

    Raises:
        BindError: the address cannot be listened on.
        UnrepairedHypercornError: the installed Hypercorn is not the one that this server is made for.
        LifespanFailureError, LifespanTimeoutError: Hypercorn's; the application did not start or stop.
        LifespanEndedError: the application's lifespan ended before the trigger; requests were drained all the same.
    """
    require_repaired_version()
    limits = limits or ServerLimits()
    sock = bind_socket(host, port, send_buffer_bytes=limits.send_buffer_bytes)
    try:
        config = _hypercorn_config(limits)
        wrapped = ASGIWrapper(app)
        state: dict[str, Any] = {}
        async with LifespanRun(wrapped, config, state, cut=cut_trigger, cut_timeout_s=limits.cut_timeout_s) as lifespan:
            connections = _Connections(wrapped, config, state, limits)
            try:
                server = await asyncio.start_server(connections.accept, sock=sock, backlog=limits.backlog)
            except OSError as error:  # two may have bound the address before either of them listened
                raise bind_error(host, port, error) from error
            try:
                if on_bound is not None:
                    on_bound(url_of(sock))
                await first_of(shutdown_trigger(), lifespan.ended())
            finally:
                await _stop_accepting(server)
                await connections.drain(cut_trigger)
    finally:
        sock.close()


async def _stop_accepting(server: asyncio.Server) -> None:
    # A connection that asyncio has accepted in this turn of the loop would find its server closed, and be forgotten.
    for sock in server.sockets:
        asyncio.get_running_loop().remove_reader(sock.fileno())
    await asyncio.sleep(0)
    # Not `wait_closed`: since Python 3.12.1 it waits for every connection, without a deadline.
    server.close()


class _Connections:
    """Owns every open connection and its task."""

    def __init__(self, app: Any, config: Config, state: dict[str, Any], limits: ServerLimits) -> None:
        self._app, self._config, self._state, self._limits = app, config, state, limits
        self._context = WorkerContext(None)
        self._cap = connection_cap(limits)
        self._open: dict[asyncio.Task[None], Connection] = {}

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._open) >= self._cap or self._context.terminated.is_set():
            # No lingering: the point is to have the descriptor back at once, even if the peer misses the answer.
            writer.write(_FULL)
            writer.close()
            return
        connection = Connection(
            self._app, self._config, self._context, self._state, self._limits, streams=(reader, writer)
        )
        task = asyncio.get_running_loop().create_task(connection.run())
        self._open[task] = connection
        task.add_done_callback(self._closed)

    def _closed(self, task: asyncio.Task[None]) -> None:
        self._open.pop(task).abort()
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.warning("a connection ended on an error: %r", error)
            _log.debug("its traceback", exc_info=error)

    async def drain(self, cut: Trigger) -> None:
        """Let running requests end, then tell the rest that their client is gone, then cancel what is left."""
        await self._context.terminated.set()
        for connection in list(self._open.values()):
            connection.close_if_idle()
        limits = self._limits
        try:
            await first_of(self._all_closed(), cut(), timeout_s=limits.drain_timeout_s)
            if not self._open:
                return
            _log.warning("cutting %d connections that did not end while draining", len(self._open))
            self._abort()
            await first_of(self._all_closed(), timeout_s=limits.cut_timeout_s)
        finally:
            self._abort()
            for task in list(self._open):
                task.cancel()
        await first_of(self._all_closed(), timeout_s=limits.cut_timeout_s)
        if self._open:
            _log.error("%d connections would not end; leaving them", len(self._open))

    def _abort(self) -> None:
        for connection in list(self._open.values()):
            connection.abort()

    async def _all_closed(self) -> None:
        if self._open:
            await asyncio.wait(list(self._open))


def _hypercorn_config(limits: ServerLimits) -> Config:
    config = Config()
    config.accesslog = None
    config.errorlog = _log
    config.include_server_header = False
    config.h11_max_incomplete_size = limits.max_header_bytes
    config.h2_max_concurrent_streams = limits.h2_max_concurrent_streams
    config.h2_max_header_list_size = limits.max_header_bytes
    # At its limit Hypercorn sends GOAWAY over HTTP/2 at once, and so cuts the streams that are still running.
    config.keep_alive_max_requests = _UNLIMITED
    config.websocket_max_message_size = limits.websocket_max_message_bytes
    config.startup_timeout = limits.startup_timeout_s
    config.shutdown_timeout = limits.shutdown_timeout_s
    return config
