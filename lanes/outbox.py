"""The writing half of a link: messages are queued from synchronous code and written together by one task."""

from __future__ import annotations

import anyio
from anyio.abc import ByteStream

from lanes import wire


class Outbox:
    """Frames waiting to be written to one stream.

    It needs no limit of its own while the other side does not read. A router's holds submissions, and each has a slot
    (``max_active``) that only the host's last word on it frees. A host's holds the events of those requests, no more
    than their answers (``max_tokens``), and a heartbeat a second: no new request comes in meanwhile.
    """

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._frames = bytearray()
        self._filled = anyio.Event()

    def put(self, message: wire.ToHost | wire.FromHost) -> None:
        """Queue a message. Call on the event loop that runs :meth:`run`."""
        self._frames += wire.encode(message)
        self._filled.set()

    async def run(self) -> None:
        """Write what is queued, for as long as the stream lives; whoever reads the stream notices its end."""
        while True:
            await self._filled.wait()
            self._filled = anyio.Event()
            frames, self._frames = bytes(self._frames), bytearray()
            try:
                await self._stream.send(frames)
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                return
