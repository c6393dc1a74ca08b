"""One client connection: the reader, the writer with its deadline, and the timers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

from hypercorn.events import Closed, RawData, Updated
from hypercorn.protocol.h11 import H2ProtocolAssumedError
from hypercorn.typing import ConnectionState
from hypercorn.utils import parse_socket_addr

from opta_router.server.limits import ServerLimits
from opta_router.server.repairs.app_queue import AppTaskGroup
from opta_router.server.repairs.h2 import RepairedH2
from opta_router.server.repairs.h11 import RepairedH11

_READ_BYTES = 2**16
_MOST_UNWRITTEN_BYTES = 2**16


class Connection:
    """Serves one connection; stands where Hypercorn has `asyncio.tcp_server.TCPServer`.

    A connection is at any time idle (a timer runs, for the next request or for the rest of its headers), serving (no
    timer; the application has its own deadlines) or closing (our side is shut; what the peer still sends is read and
    discarded, so that its last answer is not lost to a TCP reset, RFC 9112, 9.6; a timer aborts it).
    """

    def __init__(
        self,
        app: Any,
        config: Any,
        context: Any,
        state: dict[str, Any],
        limits: ServerLimits,
        *,
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self._app, self._config, self._context, self._state, self._limits = app, config, context, state, limits
        self._reader, self._writer = streams
        self._loop = asyncio.get_running_loop()
        self._unwritten = bytearray()
        self._written_bytes = 0
        self._left_bytes: int | None = None  # of what was written, when the peer was last looked at while closing
        self._protocol: Any = None
        self._timer: asyncio.TimerHandle | None = None
        self._idle = True
        self._between_requests = False
        self._closing = False

    async def run(self) -> None:
        """Serve until either side closes. Errors of the peer end here; the application's are logged by Hypercorn."""
        try:
            sock = self._writer.get_extra_info("socket")
            peers = (
                parse_socket_addr(sock.family, sock.getpeername()),
                parse_socket_addr(sock.family, sock.getsockname()),
            )
            async with AppTaskGroup(self._loop) as task_group:
                shared = (self._app, self._config, self._context, task_group, ConnectionState(self._state), False)
                self._protocol_args = (*shared, *peers, self._send)
                self._protocol = RepairedH11(*self._protocol_args)
                self._arm(self._limits.header_timeout_s)
                await self._read()
        except OSError:
            pass  # the peer went away
        finally:
            await self._release()

    def close_if_idle(self) -> None:
        """Close unless a request is being served; called once the server is draining."""
        if self._idle:
            self._close_idle()

    def abort(self) -> None:
        """Cut the connection, dropping what has not been sent; the applications get their disconnect."""
        self._closing = True
        self._writer.transport.abort()

    async def _read(self) -> None:
        data = b"-"
        while data:
            try:
                data = await self._reader.read(_READ_BYTES)
            except OSError:
                break
            if self._closing:
                continue
            if self._between_requests:
                # The rest of the headers has to follow; a trickle must not live on the keep-alive's time.
                self._between_requests = False
                self._arm(self._limits.header_timeout_s)
            await self._handle(data)
        await self._protocol.handle(Closed())

    async def _handle(self, data: bytes) -> None:
        try:
            await self._protocol.handle(RawData(data))
        except H2ProtocolAssumedError as preface:
            limits = self._limits
            self._protocol = RepairedH2(
                *self._protocol_args, write_stall_s=limits.write_stall_s, max_resets_per_s=limits.h2_max_resets_per_s
            )
            await self._protocol.initiate()
            self._arm(limits.keep_alive_timeout_s)
            await self._protocol.handle(RawData(preface.data))

    async def _send(self, event: Any) -> None:
        """What the protocol wants: bytes sent, the connection closed, or a change between idle and serving."""
        match event:
            case RawData():
                await self._write(event.data)
            case Closed():
                self._begin_close()
                await self._protocol.handle(Closed())
            case Updated() if self._closing:
                pass  # the timer that runs is the one that aborts
            case Updated(idle=False):
                self._idle = self._between_requests = False
                self._disarm()
            case Updated(idle=True):
                self._idle = True
                self._await_request()
                if self._context.terminated.is_set():
                    self._close_idle()

    def _await_request(self) -> None:
        over_h1 = isinstance(self._protocol, RepairedH11)
        begun = over_h1 and self._protocol.holds_bytes
        self._between_requests = over_h1 and not begun
        self._arm(self._limits.header_timeout_s if begun else self._limits.keep_alive_timeout_s)

    async def _write(self, data: bytes) -> None:
        transport = self._writer.transport
        if self._closing or transport.is_closing():
            await self._protocol.handle(Closed())
            return
        try:
            # Taken at once: were a task cancelled while it waits for its turn, bytes would be lost that the protocol's
            # state takes for sent, and over HTTP/2 every other stream with them. Written together with what else
            # there is to write in this turn of the loop: an answer's head, body and end cost one system call.
            if not self._unwritten:
                self._loop.call_soon(self._flush)
            self._unwritten += data
            if len(self._unwritten) >= _MOST_UNWRITTEN_BYTES:
                self._flush()
            if transport.get_write_buffer_size():
                await self._drain_while_moving()
        except (OSError, RuntimeError):
            await self._protocol.handle(Closed())

    def _flush(self) -> None:
        data, self._unwritten = bytes(self._unwritten), bytearray()
        if data and not self._writer.transport.is_closing():
            self._writer.write(data)
            self._written_bytes += len(data)

    async def _drain_while_moving(self) -> None:
        """Wait for room in the write buffer; abort a peer that has taken nothing for `write_stall_s`."""
        while True:
            taken_bytes = self._taken_bytes()
            try:
                async with asyncio.timeout(self._limits.write_stall_s):
                    return await self._writer.drain()
            except TimeoutError:
                if self._taken_bytes() == taken_bytes:
                    self.abort()
                    raise

    def _taken_bytes(self) -> int:
        return self._written_bytes - self._writer.transport.get_write_buffer_size()

    def _close_idle(self) -> None:
        if isinstance(self._protocol, RepairedH2) and not self._closing:
            self._unwritten += self._protocol.farewell()
        self._begin_close()

    def _begin_close(self) -> None:
        if self._closing:
            return
        self._closing = True
        with contextlib.suppress(OSError, RuntimeError):  # the peer was faster
            self._flush()
            self._writer.write_eof()
        self._linger()

    def _linger(self) -> None:
        """Abort a peer that takes nothing for `write_stall_s`, or that has it all and has not closed in `linger_s`."""
        left_bytes = self._writer.transport.get_write_buffer_size()
        if left_bytes == self._left_bytes:
            self.abort()
        else:
            self._left_bytes = left_bytes
            self._arm(self._limits.write_stall_s if left_bytes else self._limits.linger_s, self._linger)

    async def _release(self) -> None:
        """Give the descriptor back; `wait_closed` alone would wait for a stalled reader for ever."""
        if not self._closing:
            self._closing = True
            self._flush()
            self._linger()
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except OSError:
            pass
        except asyncio.CancelledError:
            self._writer.transport.abort()
            raise
        finally:
            self._disarm()

    def _arm(self, delay_s: float, action: Callable[[], None] | None = None) -> None:
        self._disarm()
        self._timer = self._loop.call_later(delay_s, action or self._close_idle)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
