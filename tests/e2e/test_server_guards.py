"""Request bodies, Host and Origin, as the real server meets them."""

import asyncio
import json
from contextlib import asynccontextmanager, suppress

import anyio
import pytest
from wsproto import ConnectionType, WSConnection
from wsproto.connection import Connection
from wsproto.events import AcceptConnection, RejectConnection, RejectData, Request, TextMessage
from wsproto.extensions import PerMessageDeflate

from opta_router.server import BodyLimit, HostGuard
from opta_router.server.testing import serving, until

pytestmark = pytest.mark.anyio

POST = b"POST / HTTP/1.1\r\nhost: localhost\r\n"


@pytest.fixture
def anyio_backend():
    return "asyncio"


class Echo:
    """Answers with the body over HTTP, with each message over WebSocket."""

    def __init__(self):
        self.requests = 0

    async def __call__(self, scope, receive, send):
        self.requests += scope["type"] != "lifespan"
        if scope["type"] == "http":
            body = (await receive())["body"]
            headers = [(b"content-length", b"%d" % len(body))]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": body})
        elif scope["type"] == "websocket":
            await send({"type": "websocket.accept"})
            while (message := await receive())["type"] != "websocket.disconnect":
                if message["type"] == "websocket.receive":
                    await send({"type": "websocket.send", "text": message["text"]})


def render_error(status, code, message):
    return json.dumps({"type": "error", "error": {"type": code, "message": message}}).encode()


@asynccontextmanager
async def echoing(app=None, **limits):
    """A connection to a guarded server: its reader and its writer."""
    limited = BodyLimit(app or Echo(), render_error=render_error, **{"max_body_bytes": 1000, **limits})
    async with serving(HostGuard(limited, bound_host="127.0.0.1"), linger_s=0.2) as server:
        reader, writer = await asyncio.open_connection(*server.address)
        try:
            with anyio.fail_after(20):
                yield reader, writer
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


async def read_response(reader):
    head = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
    length = next(int(line.partition(b":")[2]) for line in head if line.startswith(b"content-length:"))
    return int(head[0].split()[1]), await reader.readexactly(length)


async def refusal(reader):
    status, body = await read_response(reader)
    code = json.loads(body)["error"]["type"]
    assert await reader.read() == b"", "a refused request must end its connection"
    return status, code


async def test_body_within_the_limit_reaches_the_application_in_one_piece():
    async with echoing() as (reader, writer):
        for _ in range(2):
            writer.write(POST + b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n")
            await anyio.sleep(0.01)
            writer.write(b"2\r\nde\r\n0\r\n\r\n")
            assert await read_response(reader) == (200, b"abcde")


async def test_declared_oversize_is_refused_before_any_of_it_is_sent():
    app = Echo()
    async with echoing(app) as (reader, writer):
        writer.write(POST + b"content-length: 100000000\r\n\r\n")
        assert await refusal(reader) == (413, "body_too_large")
    assert app.requests == 0


async def test_declared_oversize_is_refused_to_a_client_that_sends_it_all():
    async with echoing() as (reader, writer):
        writer.write(POST + b"content-length: 20000000\r\n\r\n" + bytes(20_000_000))
        assert await refusal(reader) == (413, "body_too_large")


async def test_chunked_oversize_is_refused_once_it_is_exceeded():
    app = Echo()
    async with echoing(app) as (reader, writer):
        writer.write(POST + b"transfer-encoding: chunked\r\n\r\n")
        with suppress(OSError):
            for _ in range(1000):
                writer.write(b"400\r\n" + bytes(0x400) + b"\r\n")
                await writer.drain()
        assert await refusal(reader) == (413, "body_too_large")
    assert app.requests == 0


async def test_slow_body_is_refused_at_its_deadline():
    async with echoing(read_timeout_s=0.2) as (reader, writer):
        writer.write(POST + b"content-length: 100\r\n\r\nabc")
        assert await refusal(reader) == (408, "body_timeout")


async def test_compressed_body_is_refused():
    async with echoing() as (reader, writer):
        writer.write(POST + b"content-encoding: gzip\r\ncontent-length: 3\r\n\r\nabc")
        assert await refusal(reader) == (415, "unsupported_content_coding")


async def test_client_that_leaves_in_the_middle_of_its_body_never_reaches_the_application():
    app = Echo()
    limited = BodyLimit(app, max_body_bytes=1000)
    async with serving(limited) as server:
        reader, writer = await asyncio.open_connection(*server.address)
        writer.write(POST + b"content-length: 100\r\n\r\nabc")
        await until(lambda: limited.stats()["held_bytes"] == 3)
        writer.close()
        await until(lambda: limited.stats()["held_bytes"] == 0)
        with suppress(OSError):
            await reader.read()
            await writer.wait_closed()
    assert app.requests == 0


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (b"host: attacker.example\r\n", (421, "host_not_allowed")),
        (b"host: localhost\r\norigin: https://attacker.example\r\n", (403, "origin_not_allowed")),
        (b"host: localhost\r\norigin: null\r\n", (403, "origin_not_allowed")),
    ],
)
async def test_foreign_name_or_page_never_reaches_the_application(headers, expected):
    app = Echo()
    async with serving(HostGuard(app, bound_host="127.0.0.1", render_error=render_error)) as server:
        reader, writer = await asyncio.open_connection(*server.address)
        with anyio.fail_after(20):
            writer.write(b"GET / HTTP/1.1\r\n" + headers + b"\r\n")
            assert await refusal(reader) == expected
        writer.close()
        await writer.wait_closed()
    assert app.requests == 0


async def websocket_handshake(reader, writer, **headers):
    client = WSConnection(ConnectionType.CLIENT)
    extra = [(name.encode(), value.encode()) for name, value in headers.items()]
    request = Request(host="localhost", target="/", extensions=[PerMessageDeflate()], extra_headers=extra)
    writer.write(client.send(request))
    while True:
        client.receive_data(await reader.read(65536))
        for event in client.events():
            if isinstance(event, AcceptConnection | RejectConnection | RejectData):
                return event


async def test_websocket_is_served_without_the_compression_that_its_client_offers():
    async with echoing() as (reader, writer):
        accepted = await websocket_handshake(reader, writer)
        assert isinstance(accepted, AcceptConnection)
        assert accepted.extensions == []
        frames = Connection(ConnectionType.CLIENT)
        writer.write(frames.send(TextMessage(data="hello")))
        while not (events := list(frames.events())):
            frames.receive_data(await reader.read(65536))
    assert [event.data for event in events] == ["hello"]


async def test_websocket_from_a_foreign_page_is_refused():
    app = Echo()
    async with echoing(app) as (reader, writer):
        rejected = await websocket_handshake(reader, writer, origin="https://attacker.example")
    assert isinstance(rejected, RejectConnection)
    assert rejected.status_code == 403
    assert app.requests == 0
