"""HTTP/2: back-pressure that holds, readers that stall, bodies after their answer, answers without an end, resets."""

from __future__ import annotations

import asyncio
from typing import Any

import h2.connection
import h2.events
import h2.exceptions
from h2.errors import ErrorCodes
from hypercorn.events import Closed, Updated
from hypercorn.protocol.events import EndData, Response, StreamClosed
from hypercorn.protocol.h2 import (
    BUFFER_HIGH_WATER,
    BUFFER_LOW_WATER,
    BufferCompleteError,
    H2Protocol,
    StreamBuffer,
)
from hypercorn.protocol.ws_stream import WSStream

from opta_router.server.repairs.websocket import bound

_WS_EXTENSIONS = b"sec-websocket-extensions"


class StalledReaderError(Exception):
    """The peer's window has let nothing through for `write_stall_s`."""


class BoundedStreamBuffer(StreamBuffer):  # type: ignore[misc]
    """A stream's outgoing bytes: a writer waits while more than the high-water mark is left in the buffer.

    Hypercorn releases the writer when little was *taken*, so a closed window (nothing taken) releases it at once.
    """

    def __init__(self, event_class: Any, write_stall_s: float) -> None:
        super().__init__(event_class)
        self._write_stall_s = write_stall_s
        self._taken_bytes = 0

    @property
    def ended(self) -> bool:
        """Whether the application has said that nothing follows what is in here."""
        return bool(self._complete)

    async def push(self, data: bytes) -> None:
        """Add `data`, then wait until the buffer is low again.

        Raises:
            BufferCompleteError: the stream has ended.
            StalledReaderError: nothing was taken for `write_stall_s`.
        """
        if self._complete:
            raise BufferCompleteError
        self.buffer.extend(data)
        await self._is_empty.clear()
        if len(self.buffer) >= BUFFER_HIGH_WATER:
            await self._paused.clear()
            await self._wait_while_moving(self._paused)

    async def pop(self, max_length: int) -> bytes:
        """Take up to `max_length` bytes for the wire."""
        data = bytes(self.buffer[:max_length])
        del self.buffer[: len(data)]
        self._taken_bytes += len(data)
        if len(self.buffer) < BUFFER_LOW_WATER:
            await self._paused.set()
        if not self.buffer:
            await self._is_empty.set()
        return data

    async def drain(self) -> None:
        """Wait until the buffer is empty; raises as `push`."""
        await self._wait_while_moving(self._is_empty)

    async def _wait_while_moving(self, event: Any) -> None:
        while not event.is_set():
            taken_bytes = self._taken_bytes
            try:
                async with asyncio.timeout(self._write_stall_s):
                    await event.wait()
            except TimeoutError:
                if self._taken_bytes == taken_bytes:
                    raise StalledReaderError from None


class RepairedH2(H2Protocol):  # type: ignore[misc]
    """Hypercorn's HTTP/2, with every stream bounded in memory and in time."""

    def __init__(self, *args: Any, write_stall_s: float, max_resets_per_s: int) -> None:
        super().__init__(*args)
        self._write_stall_s = write_stall_s
        self._max_resets_per_s = max_resets_per_s
        self._resets: list[float] = []
        self._receiving: set[int] = set()  # streams whose request has not ended

    async def handle(self, event: Any) -> None:
        """Bytes from the client, or the end of the connection."""
        await super().handle(event)
        if isinstance(event, Closed):
            # Nobody takes from the buffers any more; Hypercorn leaves their writers waiting.
            for buffer in list(self.stream_buffers.values()):
                await buffer.close()

    def farewell(self) -> bytes:
        """GOAWAY, unless it has been said, for a connection that closes while none of its streams runs."""
        if self.connection.state_machine.state is not h2.connection.ConnectionState.CLOSED:
            self.connection.close_connection()
        return bytes(self.connection.data_to_send())

    async def stream_send(self, event: Any) -> None:
        """A part of a response, from its application's task."""
        stream_id = event.stream_id
        stream = self.streams.get(stream_id)
        if isinstance(event, Response) and self._head_sent(stream_id):
            # An application that was cancelled while it sent its head, and Hypercorn's 500 for it: h2 would change its
            # header compression before it refused, and so spoil every other stream.
            await self._abandon(stream_id, ErrorCodes.INTERNAL_ERROR)
            return
        try:
            await super().stream_send(event)
        except StalledReaderError:
            await self._abandon(stream_id, ErrorCodes.CANCEL)
            return
        if not isinstance(event, StreamClosed) or self._has_ended(stream_id):
            return
        # The application returned in the middle; Hypercorn would leave the client waiting for the rest.
        if isinstance(stream, WSStream):
            await self.stream_send(EndData(stream_id=stream_id))
        else:
            await self._abandon(stream_id, ErrorCodes.INTERNAL_ERROR)

    def _head_sent(self, stream_id: int) -> bool:
        stream = self.connection.streams.get(stream_id)
        return stream is not None and bool(stream.state_machine.headers_sent)

    def _has_ended(self, stream_id: int) -> bool:
        buffer = self.stream_buffers.get(stream_id)
        return buffer is None or bool(buffer.ended)

    async def _abandon(self, stream_id: int, code: ErrorCodes) -> None:
        """Reset a stream that cannot be brought to its end, and tell its application."""
        self._reset(stream_id, code)
        if stream_id in self.stream_buffers:
            await self.stream_buffers[stream_id].close()
        await self._close_stream(stream_id)
        await self._window_updated(stream_id)  # lets the sending task find the stream closed, and forget it
        await self._flush()
        await self.send(Updated(idle=self.idle))

    def _reset(self, stream_id: int, code: ErrorCodes) -> None:
        self._receiving.discard(stream_id)
        try:
            self.connection.reset_stream(stream_id, error_code=code)
        except h2.exceptions.ProtocolError:
            return  # closed already, by the peer or by us

    async def _send_data(self, stream_id: int) -> None:
        await super()._send_data(stream_id)
        if stream_id not in self.stream_buffers and stream_id in self._receiving:
            # Answered before the request ended: the rest of its body is not wanted (RFC 9113, 8.1).
            self._reset(stream_id, ErrorCodes.NO_ERROR)
            await self._flush()

    async def _handle_events(self, events: list[h2.events.Event]) -> None:
        for event in events:
            match event:
                case h2.events.RequestReceived() if self.context.terminated.is_set():
                    self._reset(event.stream_id, ErrorCodes.REFUSED_STREAM)  # safe to retry elsewhere (RFC 9113, 8.7)
                case h2.events.RequestReceived():
                    self._receiving.add(event.stream_id)
                    await super()._handle_events([event])
                    await self.send(Updated(idle=self.idle))  # Hypercorn says "serving" even if it refused
                case h2.events.DataReceived() if not self._wants_data(event.stream_id):
                    self.connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                    if event.stream_id in self.streams:
                        await self._abandon(event.stream_id, ErrorCodes.PROTOCOL_ERROR)
                case h2.events.StreamReset() if self._resets_too_fast():
                    self.connection.close_connection(ErrorCodes.ENHANCE_YOUR_CALM)
                    await self._flush()
                    await self.send(Closed())
                    return
                case h2.events.StreamReset():
                    self._receiving.discard(event.stream_id)
                    await super()._handle_events([event])
                    await self.send(Updated(idle=self.idle))  # Hypercorn says nothing, and no timer would run
                case h2.events.StreamEnded():
                    self._receiving.discard(event.stream_id)
                    await super()._handle_events([event])
                case _:
                    await super()._handle_events([event])
        await self._flush()

    def _wants_data(self, stream_id: int) -> bool:
        """Whether Hypercorn can take data for this stream.

        For one that has been answered it would die of a KeyError; for a WebSocket whose handshake has not been, it
        would answer 400 and forget the application, which would wait for ever.
        """
        stream = self.streams.get(stream_id)
        early = isinstance(stream, WSStream) and not stream.handshake.accepted
        return stream is not None and not early

    def _resets_too_fast(self) -> bool:
        now_s = asyncio.get_running_loop().time()
        self._resets = [*(at_s for at_s in self._resets if now_s - at_s < 1.0), now_s]
        return len(self._resets) > self._max_resets_per_s

    async def _create_stream(self, request: h2.events.RequestReceived) -> None:
        if not _is_servable(request):
            self._reset(request.stream_id, ErrorCodes.PROTOCOL_ERROR)
            return
        request.headers = [(name, value) for name, value in request.headers if name != _WS_EXTENSIONS]  # as in h11.py
        await super()._create_stream(request)
        if request.stream_id in self.stream_buffers:
            # The application's task is scheduled but has not run: nothing is lost with the buffer made upstream.
            self.stream_buffers[request.stream_id] = BoundedStreamBuffer(self.context.event_class, self._write_stall_s)
        stream = self.streams.get(request.stream_id)
        if isinstance(stream, WSStream):
            bound(stream)
            if stream.closed:  # not a valid handshake; it has been answered
                await self._close_stream(request.stream_id)


def _is_servable(request: h2.events.RequestReceived) -> bool:
    """Hypercorn takes an ASCII method and path for granted; h2 checks neither (nor a path for CONNECT)."""
    headers = dict(request.headers)
    return all(headers.get(name, b"\xff").isascii() for name in (b":method", b":path"))
