"""HTTP/1.1 over real sockets: readers that stall, clients that leave, answers before the body."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import anyio
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from opta_router.server import ON_DISCONNECT
from opta_router.server.testing import RunningServer, descriptors_back_to, open_descriptors, serving, until

pytestmark = pytest.mark.anyio

GET = b"GET %s HTTP/1.1\r\nhost: localhost\r\n\r\n"
CHUNK = bytes(32 * 1024)
LARGE = bytes(60_000)  # fits into the server's own buffer, so that the application is done with it at once


@pytest.fixture
def anyio_backend():
    return "asyncio"


class Faults:
    """An application that shows from the inside what a client did to it."""

    def __init__(self):
        self.sent_bytes = 0
        self.running = 0
        self.started = asyncio.Event()
        self.disconnected = asyncio.Event()
        self.release = asyncio.Event()
        self._routes = Starlette(
            routes=[
                Route("/flood", self.flood),
                Route("/wait", self.wait, methods=["GET", "POST"]),
                Route("/early", self.early, methods=["POST"]),
                Route("/echo", self.echo, methods=["GET", "POST"]),
                Route("/slow", self.slow),
                Route("/large", self.large),
            ]
        )

    async def app(self, scope, receive, send) -> None:
        self.running += scope["type"] == "http"
        try:
            await self._routes(scope, receive, send)
        finally:
            self.running -= scope["type"] == "http"

    async def flood(self, _: Request) -> Response:
        async def body():
            while True:
                self.sent_bytes += len(CHUNK)
                yield CHUNK

        return StreamingResponse(body())

    async def wait(self, request: Request) -> Response:
        self.started.set()
        while (await request.receive())["type"] != "http.disconnect":
            pass
        self.disconnected.set()
        return PlainTextResponse("too late")

    async def early(self, _: Request) -> Response:
        return PlainTextResponse("not you", status_code=401)

    async def echo(self, request: Request) -> Response:
        return PlainTextResponse(await request.body() or request.url.query)

    async def slow(self, _: Request) -> Response:
        self.started.set()
        await self.release.wait()
        return PlainTextResponse("done")

    async def large(self, _: Request) -> Response:
        return PlainTextResponse(LARGE)


@asynccontextmanager
async def deadline() -> AsyncIterator[None]:
    with anyio.fail_after(20):
        yield


@asynccontextmanager
async def connected(
    server: RunningServer, **options
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(*server.address, **options)
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def read_response(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    length = next(int(line.partition(b":")[2]) for line in lines if line.startswith(b"content-length:"))
    return int(lines[0].split()[1]), await reader.readexactly(length)


def stalled_reader(server: RunningServer, path: bytes, headers: bytes = b"") -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    sock.connect(server.address)
    sock.sendall((GET % path).removesuffix(b"\r\n") + headers + b"\r\n")
    return sock


async def test_stalled_reader_is_bounded_in_memory_then_cut_and_its_slot_freed():
    faults = Faults()
    async with serving(faults.app, write_stall_s=0.3) as server:
        before = open_descriptors()
        clients = [stalled_reader(server, b"/flood") for _ in range(10)]
        await until(lambda: faults.sent_bytes > 0 and faults.running == 0)
        per_reader_bytes = faults.sent_bytes / len(clients)
        for client in clients:
            client.close()
        await descriptors_back_to(before)

    assert per_reader_bytes < 512 * 1024


async def test_slow_reader_that_keeps_reading_is_not_cut():
    faults = Faults()
    async with serving(faults.app, write_stall_s=0.3) as server:
        client = stalled_reader(server, b"/flood")
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        with anyio.fail_after(30):
            for _ in range(40):
                assert await loop.sock_recv(client, 64 * 1024) != b""
                await anyio.sleep(0.03)
            assert faults.running == 1
        client.close()


def leave_with_fin(writer: asyncio.StreamWriter) -> None:
    writer.close()


def leave_with_reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def leave_after_pipelining(writer: asyncio.StreamWriter) -> None:
    writer.write(GET % b"/echo")
    writer.close()


def leave_after_pipelining_too_much(writer: asyncio.StreamWriter) -> None:
    writer.write((GET % b"/echo") * 5000)
    writer.close()


@pytest.mark.parametrize(
    "leave", [leave_with_fin, leave_with_reset, leave_after_pipelining, leave_after_pipelining_too_much]
)
async def test_client_that_leaves_during_a_request_is_noticed(leave):
    faults = Faults()
    async with serving(faults.app) as server:
        before = open_descriptors()
        _, writer = await asyncio.open_connection(*server.address)
        writer.write(GET % b"/wait")
        with anyio.fail_after(20):
            await faults.started.wait()
            leave(writer)
            await faults.disconnected.wait()
        with suppress(OSError):
            await writer.wait_closed()
        await descriptors_back_to(before)


async def test_pipelined_byte_before_leaving_is_noticed_though_it_arrived_long_before():
    faults = Faults()
    async with serving(faults.app) as server, connected(server) as (_, writer):
        writer.write((GET % b"/wait") + b"G")
        with anyio.fail_after(20):
            await faults.started.wait()
            await anyio.sleep(0.05)
            assert not faults.disconnected.is_set()
            writer.write_eof()
            await faults.disconnected.wait()


async def test_pipelined_requests_are_answered_in_their_order():
    async with serving(Faults().app) as server, connected(server) as (reader, writer):
        with anyio.fail_after(20):
            writer.write(b"".join(GET % b"/echo?%d" % number for number in range(20)) + b"GET /echo?last HT")
            answers = [await read_response(reader) for _ in range(20)]
            writer.write(b"TP/1.1\r\nhost: localhost\r\n\r\n")
            answers.append(await read_response(reader))
    assert answers == [(200, b"%d" % number) for number in range(20)] + [(200, b"last")]


async def test_an_answers_head_body_and_end_are_one_write(monkeypatch):
    written = []
    write = asyncio.StreamWriter.write
    monkeypatch.setattr(asyncio.StreamWriter, "write", lambda self, data: (written.append(data), write(self, data)))
    async with serving(Faults().app) as server, connected(server) as (reader, writer):
        with anyio.fail_after(20):
            writer.write(GET % b"/echo?said")
            assert await read_response(reader) == (200, b"said")
    (answer,) = [data for data in written if data.startswith(b"HTTP/1.1")]
    assert answer.endswith(b"\r\n\r\nsaid")


async def test_a_head_goes_out_while_its_body_is_still_to_come():
    release = asyncio.Event()

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
        await release.wait()
        await send({"type": "http.response.body", "body": b"late"})

    async with serving(app) as server, connected(server) as (reader, writer):
        with anyio.fail_after(20):
            writer.write(GET % b"/")
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            release.set()
            assert await reader.readexactly(4) == b"late"


async def test_whoever_asked_is_told_when_the_client_leaves_and_not_when_the_answer_is_complete():
    left, asked = [], asyncio.Event()

    async def app(scope, receive, send):
        if scope["type"] != "http":
            return
        scope["extensions"][ON_DISCONNECT](lambda: left.append(scope["path"]))
        asked.set()
        if scope["path"] == "/answered":
            await PlainTextResponse("done")(scope, receive, send)
        else:
            await until(lambda: bool(left))

    async with serving(app) as server:
        for path in (b"/answered", b"/left"):
            asked.clear()
            async with connected(server) as (reader, writer), deadline():
                writer.write(GET % path)
                await asked.wait()
                if path == b"/answered":
                    await read_response(reader)
        await until(lambda: bool(left))
    assert left == ["/left"]


async def test_answer_is_delivered_before_the_connection_closes_for_too_much_pipelining():
    faults = Faults()
    async with serving(faults.app) as server, connected(server) as (reader, writer):
        with anyio.fail_after(20):
            writer.write(GET % b"/slow")
            await faults.started.wait()
            writer.write(b"x" * 500_000)
            await writer.drain()
            faults.release.set()
            assert await read_response(reader) == (200, b"done")
            rest = await reader.read()
    # What the server had not read by then counts as the start of a request.
    assert rest == b"" or rest.startswith(b"HTTP/1.1 431 ")


async def test_early_answer_to_an_unread_body_leaks_no_descriptor_and_reaches_the_client():
    async with serving(Faults().app) as server:
        before, tasks_before = open_descriptors(), len(asyncio.all_tasks())
        for _ in range(40):
            async with connected(server) as (reader, writer):
                with anyio.fail_after(20):
                    writer.write(b"POST /early HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2000000\r\n\r\n")
                    writer.write(bytes(2_000_000))
                    assert await read_response(reader) == (401, b"not you")
        await descriptors_back_to(before)
        await until(lambda: len(asyncio.all_tasks()) <= tasks_before)


async def test_early_answer_to_a_client_that_never_stops_sending_frees_its_descriptor():
    async with serving(Faults().app, linger_s=0.2) as server:
        before = open_descriptors()
        async with connected(server) as (_, writer):
            writer.write(b"POST /early HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n")
            with anyio.fail_after(20), suppress(OSError):
                while True:
                    writer.write(b"1000\r\n" + bytes(0x1000) + b"\r\n")
                    await writer.drain()
        await descriptors_back_to(before)


async def test_keep_alive_peer_that_closed_frees_its_descriptor_at_once():
    async with serving(Faults().app, keep_alive_timeout_s=3600) as server:
        before = open_descriptors()
        for _ in range(10):
            async with connected(server) as (reader, writer):
                writer.write(GET % b"/echo?x")
                assert await read_response(reader) == (200, b"x")
        await descriptors_back_to(before)


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nx-slow: ", (GET % b"/echo?x") + b"GET / HT"])
async def test_headers_that_do_not_end_are_closed(sent):
    limits = {"header_timeout_s": 0.2, "keep_alive_timeout_s": 3600}
    async with serving(Faults().app, **limits) as server, connected(server) as (reader, writer), deadline():
        writer.write(sent)
        await reader.read()


async def test_trickled_headers_do_not_live_on_the_keep_alive_time():
    limits = {"header_timeout_s": 0.3, "keep_alive_timeout_s": 3600}
    async with serving(Faults().app, **limits) as server, connected(server) as (reader, writer), deadline():
        writer.write(GET % b"/echo?x")
        assert await read_response(reader) == (200, b"x")
        with suppress(OSError):
            while not reader.at_eof():
                writer.write(b"G")
                await anyio.sleep(0.05)


async def test_connection_that_waits_too_long_for_its_next_request_is_closed():
    limits = {"header_timeout_s": 3600, "keep_alive_timeout_s": 0.2}
    async with serving(Faults().app, **limits) as server, connected(server) as (reader, writer), deadline():
        writer.write(GET % b"/echo?x")
        assert await read_response(reader) == (200, b"x")
        assert await reader.read() == b""


async def test_slow_reader_of_a_last_answer_gets_all_of_it():
    async with serving(Faults().app, linger_s=0.05, write_stall_s=3, send_buffer_bytes=4096) as server:
        client = stalled_reader(server, b"/large", b"connection: close\r\n")
        client.setblocking(False)
        received_bytes, loop = 0, asyncio.get_running_loop()
        with client, anyio.fail_after(20), suppress(ConnectionResetError):
            while data := await loop.sock_recv(client, 4096):
                received_bytes += len(data)
                await anyio.sleep(0.05)
    assert received_bytes > len(LARGE)


async def test_headers_larger_than_the_limit_are_refused_with_431():
    async with serving(Faults().app) as server, connected(server) as (reader, writer):
        with anyio.fail_after(20):
            writer.write(b"GET / HTTP/1.1\r\nx: " + b"x" * 100_000)
            assert (await read_response(reader))[0] == 431
            assert await reader.read() == b""


@pytest.mark.parametrize("order", [1, -1])
async def test_body_framed_by_both_length_and_chunks_is_refused_and_what_follows_is_not_served(order):
    framing = [b"content-length: 4\r\n", b"transfer-encoding: chunked\r\n"][::order]
    smuggled = GET % b"/echo?smuggled"
    async with serving(Faults().app) as server, connected(server) as (reader, writer):
        with anyio.fail_after(20):
            writer.write(
                b"POST /echo HTTP/1.1\r\nhost: localhost\r\n" + b"".join(framing) + b"\r\n0\r\n\r\n" + smuggled
            )
            answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1") == 1


async def test_h2c_upgrade_is_ignored():
    upgrade = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n\r\n"
    async with serving(Faults().app) as server, connected(server) as (reader, writer):
        with anyio.fail_after(20):
            for _ in range(2):
                writer.write((GET % b"/echo?plain").removesuffix(b"\r\n") + upgrade)
                assert await read_response(reader) == (200, b"plain")


async def test_bytes_after_a_closing_request_do_not_spoil_its_answer():
    request = (GET % b"/echo?last").removesuffix(b"\r\n") + b"connection: close\r\n\r\n"
    async with serving(Faults().app) as server, connected(server) as (reader, writer):
        with anyio.fail_after(20):
            writer.write(request + b"\r\n")
            assert await read_response(reader) == (200, b"last")
            assert await reader.read() == b""


async def test_connection_over_the_cap_gets_503_and_the_next_is_served_again():
    async with serving(Faults().app, max_connections=2) as server:
        with anyio.fail_after(20):
            async with connected(server) as (reader, writer), connected(server) as (other, other_writer):
                for client, sender in ((reader, writer), (other, other_writer)):
                    sender.write(GET % b"/echo?in")
                    assert await read_response(client) == (200, b"in")
                async with connected(server) as (refused, _):
                    assert (await refused.read()).startswith(b"HTTP/1.1 503 ")
            status = 503
            while status == 503:
                async with connected(server) as (reader, writer):
                    writer.write(GET % b"/echo?in")
                    with suppress(OSError, asyncio.IncompleteReadError):
                        status, _ = await read_response(reader)
            assert status == 200


async def test_application_that_only_sends_does_not_own_the_loop_after_its_client_left():
    left, stop, chunks = asyncio.Event(), False, 0

    async def app(scope, receive, send):
        nonlocal chunks
        if scope["type"] != "http":
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while (await receive())["type"] != "http.disconnect":
            pass
        left.set()
        while not stop and chunks < 1_000_000:
            chunks += 1
            await send({"type": "http.response.body", "body": b"x", "more_body": True})

    async with serving(app) as server:
        async with connected(server) as (reader, writer):
            writer.write(GET % b"/")
            await reader.readuntil(b"\r\n\r\n")
        await left.wait()
        stop = True
    assert chunks < 1_000_000
