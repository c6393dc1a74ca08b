"""One end of a link: messages in as they come, messages out once in a turn of the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Generic

from anyio.abc import SocketAttribute, SocketStream

from lanes import wire
from lanes.framing import FrameReader, M, encode

RECEIVE_BYTES: Final = 256 * 1024


class FramedSocket(Generic[M]):
    """Frames over a connected socket, without a task in between.

    Neither anyio's stream, which registers its socket with the selector anew for each message (a seventh of the
    router's time on a small request), nor a transport of asyncio's, which forgets what was received and not yet read
    when a write fails: the last words of a host that has died.

    What is queued needs no limit of its own while the other side does not read. A router's is submissions, and each has
    a slot (``max_active``) that only the host's last word on it frees. A host's is the events of those requests, no
    more than their answers (``max_tokens``), and a heartbeat a second: no new request comes in meanwhile.

    Args:
        stream: connected, and still to be closed by whoever opened it; during :meth:`run` nobody else uses it.
        union: what the other side may say.
        on_message: called with each message, in order. What it raises ends :meth:`run`.
    """

    def __init__(self, stream: SocketStream, union: object, on_message: Callable[[M], None]) -> None:
        self._socket = stream.extra(SocketAttribute.raw_socket)  # noqa: S610 - not Django's
        self._on_message = on_message
        self._reader: FrameReader[M] = FrameReader(union)
        self._frames = bytearray()
        self._loop = asyncio.get_running_loop()
        self._running = self._waits_for_room = False
        self._ended: asyncio.Future[None] = self._loop.create_future()

    def put(self, message: wire.ToHost | wire.FromHost) -> None:
        """Queue a message; what is queued in one turn of the event loop is written together. Call on the loop."""
        if not self._frames:
            self._loop.call_soon(self._write)
        self._frames += encode(message)

    async def run(self) -> None:
        """Read and write until the other side closes the socket, or :meth:`close` is called.

        Raises:
            WireError: what came is not a message of the union.
        """
        self._running = True
        self._loop.add_reader(self._socket, self._read)
        self._write()
        try:
            await self._ended
        finally:
            self._running = False
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)

    def close(self) -> None:
        """End :meth:`run`; what has not been written is dropped."""
        if not self._ended.done():
            self._ended.set_result(None)

    def _read(self) -> None:
        try:
            data = self._socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
        try:
            for message in self._reader.feed(data):
                if self._ended.done():
                    return
                self._on_message(message)
        except Exception as exc:  # raised by run
            if not self._ended.done():
                self._ended.set_exception(exc)

    def _write(self) -> None:
        if not self._running or not self._frames:
            return
        try:
            sent_bytes = self._socket.send(self._frames)
        except BlockingIOError:
            sent_bytes = 0
        except OSError:
            sent_bytes = len(self._frames)  # whoever reads notices the end, behind what is still to be read
        del self._frames[:sent_bytes]
        if self._frames and not self._waits_for_room:
            self._loop.add_writer(self._socket, self._write)
        elif not self._frames and self._waits_for_room:
            self._loop.remove_writer(self._socket)
        self._waits_for_room = bool(self._frames)
