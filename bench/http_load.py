"""An HTTP/1.1 client that costs next to nothing, so that a measurement with it shows the server.

A request that was written once is sent over and over on connections that stay open; of an answer only its status and
its end are looked for.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

_END_OF_HEAD: Final = b"\r\n\r\n"
_LAST_CHUNK: Final = b"0\r\n\r\n"
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class UnexpectedAnswerError(RuntimeError):
    """The server did not answer with 200, or hung up."""


def post(path: str, body: bytes) -> bytes:
    """A request with a JSON body, as it is sent."""
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    return head.encode("ascii") + _END_OF_HEAD + body


class Connection(asyncio.Protocol):
    """A connection on which one request follows the other; made by :func:`connected`."""

    def __init__(self) -> None:
        self._received = b""
        self._transport: asyncio.WriteTransport | None = None
        self._answer: asyncio.Future[bytes] | None = None

    async def exchange(self, request: bytes) -> bytes:
        """Send ``request``; returns its answer, head and body as they came.

        Raises:
            UnexpectedAnswerError: it is not a 200.
        """
        if self._transport is None:
            raise UnexpectedAnswerError("the connection is closed")
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See :class:`asyncio.Protocol`."""
        self._transport = transport if isinstance(transport, asyncio.WriteTransport) else None

    def data_received(self, data: bytes) -> None:
        """See :class:`asyncio.Protocol`."""
        self._received += data
        if self._answer is None or not is_whole(self._received):
            return
        answer, self._received = self._received, b""
        if answer.startswith(b"HTTP/1.1 200 "):
            self._answer.set_result(answer)
        else:
            self._answer.set_exception(UnexpectedAnswerError(answer[:500].decode(errors="replace")))

    def connection_lost(self, exc: Exception | None) -> None:
        """See :class:`asyncio.Protocol`."""
        self._transport = None
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(UnexpectedAnswerError(f"the server hung up: {exc}"))


def is_whole(received: bytes) -> bool:
    """Whether an answer has come to its end; nothing follows it, as nothing more was asked."""
    end_of_head = received.find(_END_OF_HEAD)
    if end_of_head < 0:
        return False
    length = _LENGTH.search(received, 0, end_of_head)
    if length is None:  # in chunks; one of events ends in an empty line, so it cannot be taken for the last
        return received.endswith(_LAST_CHUNK)
    return len(received) >= end_of_head + len(_END_OF_HEAD) + int(length[1])


def body_of(answer: bytes) -> bytes:
    """What follows the head of an answer that did not come in chunks."""
    return answer.partition(_END_OF_HEAD)[2]


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Connection]:
    """A connection to a server on this machine."""
    transport, connection = await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", port)
    try:
        yield connection
    finally:
        transport.abort()


async def flood(port: int, request: bytes, *, connections: int, seconds: float) -> float:
    """Requests/s over ``seconds``, while each of ``connections`` always has one under way; its first is not counted.

    Raises:
        UnexpectedAnswerError: one was not answered with 200.
    """
    answered = 0

    async def ask(connection: Connection, until_s: float) -> None:
        nonlocal answered
        while time.perf_counter() < until_s:
            await connection.exchange(request)
            answered += 1

    async with AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(connected(port)) for _ in range(connections)]
        await asyncio.gather(*(connection.exchange(request) for connection in opened))
        started_s = time.perf_counter()
        await asyncio.gather(*(ask(connection, started_s + seconds) for connection in opened))
        return answered / (time.perf_counter() - started_s)
