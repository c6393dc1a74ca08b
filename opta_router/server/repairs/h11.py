"""HTTP/1.1: pipelining that does not blind us, one body framing only, no h2c, WebSocket by the rules."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from hypercorn.events import Closed, RawData
from hypercorn.protocol.h11 import H2ProtocolAssumedError, H11Protocol
from hypercorn.protocol.ws_stream import WSStream

from opta_router.server.repairs.websocket import StrictWSConnection, bound

_WS_EXTENSIONS = b"sec-websocket-extensions"
_REQUEST_EXPECTED = (h11.IDLE, h11.SEND_BODY)


class StrictConnection(h11.Connection):
    """h11's connection, refusing what invites request smuggling, and never telling its caller to stop reading."""

    _requests = 0

    def next_event(self) -> Any:
        """As h11's, with NEED_DATA in place of PAUSED.

        At PAUSED Hypercorn waits for the end of the response before it reads on, and so misses a disconnect.

        Raises:
            h11.RemoteProtocolError: also (400) for a body framed twice, and for an HTTP/2 preface after a request.
        """
        if self.their_state is h11.MUST_CLOSE:
            return h11.NEED_DATA  # the client said it was done; h11 would answer what still came with 400
        event = super().next_event()
        if event is h11.PAUSED:
            return h11.NEED_DATA
        if isinstance(event, h11.Request):
            names = [name for name, _ in event.headers]
            if b"transfer-encoding" in names and b"content-length" in names:
                # RFC 9112, 6.1: an intermediary may have framed it by the other header.
                raise h11.RemoteProtocolError("both Transfer-Encoding and Content-Length", error_status_hint=400)
            if event.method == b"PRI" and self._requests:
                raise h11.RemoteProtocolError("HTTP/2 preface on an HTTP/1.1 connection", error_status_hint=400)
            self._requests += 1
        return event


class RepairedH11(H11Protocol):  # type: ignore[misc]
    """Hypercorn's HTTP/1.1, which keeps reading while a response is under way.

    Bytes ahead of their turn (pipelining) wait in h11's buffer, up to `h11_max_incomplete_size` and one read; beyond
    that they are dropped, and the connection closes after the response.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.connection = StrictConnection(h11.SERVER, max_incomplete_event_size=self.config.h11_max_incomplete_size)
        self._parsing = asyncio.Lock()
        self._overrun = False

    @property
    def holds_bytes(self) -> bool:
        """Whether a request has been sent in part, or in whole, that is not being answered yet."""
        return bool(self.connection.trailing_data[0])

    async def handle(self, event: Any) -> None:
        """Bytes from the client, or the end of the connection."""
        if not isinstance(event, RawData):
            await super().handle(event)
        elif not self._overrun:
            self.connection.receive_data(event.data)
            self._overrun = len(self._ahead()) > self.config.h11_max_incomplete_size
            if not self._overrun:
                await self._parse()

    def _ahead(self) -> bytes:
        """What the client sent after the request that is being answered."""
        return b"" if self.connection.their_state in _REQUEST_EXPECTED else self.connection.trailing_data[0]

    async def _parse(self) -> None:
        async with self._parsing:  # the reader and the end of a response may both come here
            await self._handle_events()

    async def _maybe_recycle(self) -> None:
        if self._overrun:
            await self._close_stream()
            await self.send(Closed())
            return
        await super()._maybe_recycle()
        waiting, at_eof = self.connection.trailing_data
        if self.connection.their_state is h11.IDLE and waiting and not at_eof:
            self.task_group.spawn(self._parse)

    async def _check_protocol(self, event: h11.Request) -> None:
        """Only HTTP/2 with prior knowledge; `Upgrade: h2c` is ignored, as RFC 9113 (3.1) has deprecated it."""
        if event.method == b"PRI" and event.target == b"*" and event.http_version == b"2.0":
            raise H2ProtocolAssumedError(b"PRI * HTTP/2.0\r\n\r\n" + self.connection.trailing_data[0])

    async def _create_stream(self, request: h11.Request) -> None:
        # Hypercorn accepts any offered compression, and 64 KiB of it may inflate to 64 MiB before a limit is asked.
        kept = [(name, value) for name, value in request.headers.raw_items() if name.lower() != _WS_EXTENSIONS]
        if len(kept) != len(request.headers):
            request = h11.Request(
                method=request.method, target=request.target, headers=kept, http_version=request.http_version
            )
        await super()._create_stream(request)
        if isinstance(self.stream, WSStream):
            bound(self.stream)
            self.connection = StrictWSConnection(self.connection, self.stream)
            if self.stream.closed:
                # Not a valid handshake: Hypercorn has said `400` and `connection: close`, and leaves it open.
                await self.send(Closed())
