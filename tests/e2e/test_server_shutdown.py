"""How the server starts and stops, on whatever Python runs the tests."""

import asyncio
import socket
from contextlib import asynccontextmanager, suppress

import anyio
import pytest
from starlette.applications import Starlette

from opta_router.server import BindError, LifespanEndedError, ServerLimits, serve
from opta_router.server.testing import open_descriptors, serving, until

pytestmark = pytest.mark.anyio

GET = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"


@pytest.fixture
def anyio_backend():
    return "asyncio"


class Stubborn:
    """Floods its client and never asks whether it is still there; `deaf` makes it swallow one cancellation, too."""

    def __init__(self, *, deaf=False):
        self.deaf = deaf
        self.started = asyncio.Event()
        self.ended = 0

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return
        self.started.set()
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while True:
                await send({"type": "http.response.body", "body": bytes(32768), "more_body": True})
        except asyncio.CancelledError:
            if not self.deaf:
                raise
        finally:
            self.ended += 1


def stalled_reader(server):
    client = socket.create_connection(server.address)
    client.sendall(GET)
    return client


@pytest.mark.parametrize("deaf", [False, True])
async def test_shutdown_with_a_stalled_reader_ends_within_the_grace(deaf):
    app = Stubborn(deaf=deaf)
    before = open_descriptors()
    async with serving(app, write_stall_s=3600, drain_timeout_s=0.2, cut_timeout_s=0.2) as server:
        with stalled_reader(server), anyio.fail_after(20):
            await app.started.wait()
            await anyio.sleep(0.1)
            server.stop.set()
            await asyncio.wait([server.task])
    assert app.ended == 1
    assert open_descriptors() <= before


async def test_shutdown_with_a_reader_that_leaves_the_end_of_its_answer_ends_within_the_grace():
    async def app(scope, receive, send):
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"connection", b"close")]})
            await send({"type": "http.response.body", "body": bytes(400_000)})
            answered.set()

    answered = asyncio.Event()
    async with serving(app, write_stall_s=3600, linger_s=3600, drain_timeout_s=0.2) as server:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        client.connect(server.address)
        client.sendall(GET)
        with client, anyio.fail_after(20):
            await anyio.sleep(0.1)
            server.stop.set()
            await asyncio.wait([server.task])


async def test_running_request_is_answered_during_the_drain_and_new_connections_are_refused():
    started, release = asyncio.Event(), asyncio.Event()

    async def app(scope, receive, send):
        if scope["type"] == "http":
            started.set()
            await release.wait()
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
            await send({"type": "http.response.body", "body": b"done"})

    async with serving(app, drain_timeout_s=3600) as server:
        reader, writer = await asyncio.open_connection(*server.address)
        idle_reader, idle_writer = await asyncio.open_connection(*server.address)
        with anyio.fail_after(20):
            writer.write(GET)
            await started.wait()
            server.stop.set()
            assert await idle_reader.read() == b""
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection(*server.address)
            release.set()
            assert (await reader.read()).endswith(b"\r\n\r\ndone")
            for each in (writer, idle_writer):
                each.close()
                with suppress(OSError):
                    await each.wait_closed()
            await asyncio.wait([server.task])


async def test_idle_connections_do_not_hold_the_shutdown():
    async with serving(Stubborn(), keep_alive_timeout_s=3600, header_timeout_s=3600, drain_timeout_s=3600) as server:
        _, writer = await asyncio.open_connection(*server.address)
        with anyio.fail_after(20):
            await anyio.sleep(0.05)
            server.stop.set()
            await anyio.sleep(0.05)
            writer.close()
            await writer.wait_closed()
            await asyncio.wait([server.task])


async def test_lifespan_surrounds_the_serving():
    seen = []

    async def app(scope, receive, send):
        assert scope["type"] == "lifespan"
        for event in ("startup", "shutdown"):
            assert (await receive())["type"] == f"lifespan.{event}"
            seen.append(event)
            await send({"type": f"lifespan.{event}.complete"})

    async with serving(app):
        assert seen == ["startup"]
    assert seen == ["startup", "shutdown"]


async def test_failed_startup_is_raised_and_leaves_no_descriptor():
    async def app(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no model"})

    before = open_descriptors()
    with pytest.raises(Exception, match="no model"):
        async with serving(app):
            pass
    assert open_descriptors() <= before


async def test_failed_startup_is_raised_though_its_application_takes_time_to_clean_up():
    served = []

    async def app(scope, receive, send):
        await receive()
        try:
            await send({"type": "lifespan.startup.failed", "message": "no model"})
        finally:
            await anyio.sleep(0.05)

    with pytest.raises(Exception, match="no model"):
        async with serving(app):
            served.append(True)
    assert served == []


async def test_lifespan_that_ends_by_itself_stops_the_serving_and_is_raised_with_its_cause():
    die = asyncio.Event()

    @asynccontextmanager
    async def lifespan(_):
        async with anyio.create_task_group() as group:
            group.start_soon(supervise)
            yield

    async def supervise():
        await die.wait()
        raise ValueError("the host cannot be restarted")

    async def serve_until_it_ends():
        async with serving(Starlette(lifespan=lifespan)) as server:
            die.set()
            await asyncio.wait([server.task])

    with anyio.fail_after(20), pytest.raises(LifespanEndedError) as ended:
        await serve_until_it_ends()
    assert "the host cannot be restarted" in str(ended.value.__cause__)


async def test_cut_ends_the_drain_and_a_lifespan_that_takes_its_time():
    app, cancelled = Stubborn(), []

    async def with_slow_lifespan(scope, receive, send):
        if scope["type"] != "lifespan":
            await app(scope, receive, send)
            return
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        try:
            await anyio.sleep_forever()
        finally:
            cancelled.append("lifespan")

    times = {"drain_timeout_s": 3600, "shutdown_timeout_s": 3600, "write_stall_s": 3600}
    async with serving(with_slow_lifespan, **times) as server:
        with stalled_reader(server), anyio.fail_after(20):
            await app.started.wait()
            server.stop.set()
            await anyio.sleep(0.05)
            assert app.ended == 0
            server.cut.set()
            await asyncio.wait([server.task])
    assert (app.ended, cancelled) == (1, ["lifespan"])


async def test_cancelled_twice_leaves_no_request_running():
    app, bound = Stubborn(), asyncio.get_running_loop().create_future()
    limits = ServerLimits(drain_timeout_s=3600, write_stall_s=3600)
    serving_task = asyncio.create_task(
        serve(
            app,
            host="127.0.0.1",
            port=0,
            shutdown_trigger=asyncio.Event().wait,
            limits=limits,
            on_bound=bound.set_result,
        )
    )
    port = int((await bound).rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as client, anyio.fail_after(20):
        client.sendall(GET)
        await app.started.wait()
        serving_task.cancel()
        await anyio.sleep(0.05)
        assert app.ended == 0
        serving_task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving_task
        await until(lambda: app.ended == 1)


async def test_address_taken_while_the_application_starts_is_the_same_clear_error():
    with socket.socket() as rival:
        rival.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        rival.bind(("127.0.0.1", 0))

        async def app(scope, receive, send):
            await receive()
            rival.listen()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})

        port = rival.getsockname()[1]
        with pytest.raises(BindError, match="the address is already in use"):
            await serve(app, host="127.0.0.1", port=port, shutdown_trigger=asyncio.Event().wait)


async def test_taken_address_is_one_clear_error_before_the_application_starts():
    started = []

    async def app(scope, receive, send):
        started.append(scope["type"])

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BindError, match=rf"cannot listen on 127\.0\.0\.1:{port}: the address is already in use"):
            await serve(app, host="127.0.0.1", port=port, shutdown_trigger=asyncio.Event().wait, limits=ServerLimits())
    assert started == []


@pytest.mark.parametrize("port", [-1, 65_536])
async def test_port_out_of_range_is_one_clear_error(port):
    with pytest.raises(BindError, match="ports go from 0 to 65535"):
        await serve(Stubborn(), host="127.0.0.1", port=port, shutdown_trigger=asyncio.Event().wait)


async def test_unknown_host_is_one_clear_error():
    with pytest.raises(BindError, match="does not resolve"):
        await serve(Stubborn(), host="no-such-host.invalid", port=0, shutdown_trigger=asyncio.Event().wait)
