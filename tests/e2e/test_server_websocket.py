"""WebSocket over real sockets: handshakes that are not valid, data before its turn, messages without an end."""

import asyncio
import struct
from contextlib import asynccontextmanager, suppress

import anyio
import h2.config
import h2.connection
import h2.events
import pytest
from h2.errors import ErrorCodes

from opta_router.server.testing import descriptors_back_to, open_descriptors, serving, until

pytestmark = pytest.mark.anyio

HANDSHAKE = (
    b"GET /ws HTTP/1.1\r\nhost: localhost\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"
    b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: %d\r\n\r\n"
)
CONNECT = [
    (":method", "CONNECT"),
    (":protocol", "websocket"),
    (":scheme", "http"),
    (":path", "/ws"),
    (":authority", "localhost"),
]


@pytest.fixture
def anyio_backend():
    return "asyncio"


class Listener:
    """Accepts, counts the bytes that it is sent, and returns at the disconnect or once told to `leave`."""

    def __init__(self):
        self.running = self.disconnects = self.received_bytes = 0
        self.leave = asyncio.Event()

    async def __call__(self, scope, receive, send):
        if scope["type"] != "websocket":
            return
        self.running += 1
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self.listen, receive, send, group.cancel_scope)
                await self.leave.wait()
                group.cancel_scope.cancel()
        finally:
            self.running -= 1

    async def listen(self, receive, send, scope):
        assert (await receive())["type"] == "websocket.connect"
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] != "websocket.disconnect":
            self.received_bytes += len(message["bytes"] or b"")
        self.disconnects += 1
        scope.cancel()


def frame(payload, *, opcode=2, final=True):
    """A client's frame; a mask of zeros leaves the payload as it is."""
    return bytes([opcode | 0x80 * final, 0x80 | 127]) + struct.pack("!Q", len(payload)) + bytes(4) + payload


@asynccontextmanager
async def connected(server):
    reader, writer = await asyncio.open_connection(*server.address)
    try:
        with anyio.fail_after(20):
            yield reader, writer
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def test_data_before_the_handshake_is_answered_ends_the_connection_and_the_application():
    app = Listener()
    async with serving(app, linger_s=0.2) as server:
        before = open_descriptors()
        async with connected(server) as (reader, writer):
            writer.write((HANDSHAKE % 13) + frame(b"early"))
            assert await reader.read() == b""
        await descriptors_back_to(before)
        await until(lambda: app.running == 0)


async def test_invalid_handshake_is_answered_and_its_connection_closed():
    limits = {"linger_s": 0.2, "keep_alive_timeout_s": 3600}
    async with serving(Listener(), **limits) as server, connected(server) as (reader, writer):
        writer.write(HANDSHAKE % 9)
        assert (await reader.read()).startswith(b"HTTP/1.1 400 ")


async def test_message_over_the_limit_is_not_kept_and_ends_the_connection():
    app = Listener()
    limits = {"linger_s": 0.2, "websocket_max_message_bytes": 100_000}
    async with serving(app, **limits) as server, connected(server) as (reader, writer):
        writer.write(HANDSHAKE % 13)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(frame(bytes(100_000)))
        await until(lambda: app.received_bytes == 100_000)
        with suppress(OSError):
            writer.write(frame(bytes(65_536), final=False))
            while not reader.at_eof():
                writer.write(frame(bytes(65_536), opcode=0, final=False))
                await writer.drain()
                await asyncio.sleep(0)
        await until(lambda: app.disconnects == 1)
    assert app.received_bytes == 100_000


class Client:
    """An h2 connection that opens WebSockets."""

    def __init__(self, reader, writer):
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        self.reader, self.writer = reader, writer
        self.h2.initiate_connection()
        self.flush()

    def flush(self):
        self.writer.write(self.h2.data_to_send())

    def open(self, version=13, early=b""):
        stream_id = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream_id, [*CONNECT, ("sec-websocket-version", str(version))])
        if early:
            self.h2.send_data(stream_id, early)
        self.flush()
        return stream_id

    async def until(self, kind, stream_id=None):
        """The events up to the first of this kind (on that stream)."""
        seen = []
        while not any(
            isinstance(event, kind) and stream_id in (None, getattr(event, "stream_id", None)) for event in seen
        ):
            data = await self.reader.read(65536)
            assert data != b"", f"closed after {seen}"
            seen += self.h2.receive_data(data)
            self.flush()
        return seen


async def test_data_before_the_answer_over_http2_resets_its_stream_and_ends_its_application():
    app = Listener()
    async with serving(app) as server, connected(server) as (reader, writer):
        client = Client(reader, writer)
        stream_id = client.open(early=b"early")
        assert (await client.until(h2.events.StreamReset, stream_id))[-1].error_code == ErrorCodes.PROTOCOL_ERROR
        await until(lambda: app.running == 0)
        # The connection itself is as good as before.
        await client.until(h2.events.ResponseReceived, client.open())
        assert app.running == 1


async def test_invalid_handshakes_over_http2_are_answered_and_hold_neither_streams_nor_their_connection():
    limits = {"keep_alive_timeout_s": 0.3, "h2_max_concurrent_streams": 2}
    async with serving(Listener(), **limits) as server, connected(server) as (reader, writer):
        client = Client(reader, writer)
        for _ in range(5):
            events = await client.until(h2.events.StreamEnded, client.open(version=9))
            (response,) = (event for event in events if isinstance(event, h2.events.ResponseReceived))
            assert dict(response.headers)[":status"] == "400"
        await client.until(h2.events.ConnectionTerminated)


async def test_websocket_that_its_application_leaves_over_http2_ends_its_stream():
    app = Listener()
    async with serving(app) as server, connected(server) as (reader, writer):
        client = Client(reader, writer)
        stream_id = client.open()
        await client.until(h2.events.ResponseReceived, stream_id)
        app.leave.set()
        events = await client.until(h2.events.StreamEnded, stream_id)
    close = b"".join(event.data for event in events if isinstance(event, h2.events.DataReceived))
    assert close[:1] == b"\x88"
