"""The client that measures, against a server that the test plays."""

import asyncio

import pytest

from bench import http_load
from bench.http_load import UnexpectedAnswerError

pytestmark = pytest.mark.anyio

WHOLE = b"HTTP/1.1 200 \r\nContent-Length: 4\r\n\r\nbody"
CHUNKED = b"HTTP/1.1 200 \r\ntransfer-encoding: chunked\r\n\r\n9\r\ndata: 0\n\n\r\n0\r\n\r\n"


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.mark.parametrize("answer", [WHOLE, CHUNKED], ids=["length", "chunks"])
def test_an_answer_is_whole_with_its_last_byte_and_not_before(answer):
    assert [http_load.is_whole(answer[:cut]) for cut in range(len(answer))] == [False] * len(answer)
    assert http_load.is_whole(answer)


def test_the_body_follows_the_head():
    assert http_load.body_of(WHOLE) == b"body"


async def answering(*answers):
    """A server that says these, one for each request, and then hangs up."""

    async def serve(reader, writer):
        for answer in answers:
            await reader.readuntil(b"\r\n\r\n{}")
            for at in range(0, len(answer), 7):
                writer.write(answer[at : at + 7])
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    return server, server.sockets[0].getsockname()[1]


async def test_requests_follow_each_other_on_one_connection():
    server, port = await answering(WHOLE, CHUNKED)
    async with server, http_load.connected(port) as connection:
        request = http_load.post("/", b"{}")
        assert await connection.exchange(request) == WHOLE
        assert await connection.exchange(request) == CHUNKED


@pytest.mark.parametrize(
    ("answers", "said"),
    [((b"HTTP/1.1 503 \r\ncontent-length: 0\r\n\r\n",), "503"), ((), "hung up|is closed")],
    ids=["an error", "nothing"],
)
async def test_what_is_not_an_answer_ends_the_measurement(answers, said):
    server, port = await answering(*answers)
    async with server:
        with pytest.raises(UnexpectedAnswerError, match=said):
            await http_load.flood(port, http_load.post("/", b"{}"), connections=2, seconds=0.01)
