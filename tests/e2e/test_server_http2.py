"""HTTP/2 over real sockets: windows that stay closed, streams that are reset, bodies after their answer."""

import asyncio
import resource
from collections import deque
from contextlib import asynccontextmanager, suppress

import anyio
import h2.config
import h2.connection
import h2.events
import pytest
from h2.errors import ErrorCodes

from opta_router.server import BodyLimit
from opta_router.server.testing import RunningServer, descriptors_back_to, open_descriptors, serving, until

pytestmark = pytest.mark.anyio

CHUNK = bytes(32 * 1024)


@pytest.fixture
def anyio_backend():
    return "asyncio"


class Flood:
    """Sends for ever on /flood, answers without reading on /early, and counts what is going on.

    On /fail and /fail-midway it raises; on /impatient it gives up on sending its head and returns.
    """

    def __init__(self):
        self.gave_up = asyncio.Event()
        self.sent_bytes = 0
        self.running = 0
        self.disconnects = 0

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return
        self.running += 1
        try:
            match scope["path"]:
                case "/flood":
                    await self.flood(receive, send)
                case "/impatient":
                    await self.impatient(send)
                case "/fail":
                    raise ValueError("no")
                case "/fail-midway":
                    await send({"type": "http.response.start", "status": 200, "headers": []})
                    await send({"type": "http.response.body", "body": b"so far", "more_body": True})
                    raise ValueError("no further")
                case _:
                    await self.early(send)
        finally:
            self.running -= 1

    async def impatient(self, send):
        with anyio.move_on_after(0.1):
            await send({"type": "http.response.start", "status": 203, "headers": [(b"x-new-to-hpack", b"1")]})
        self.gave_up.set()

    async def flood(self, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        async with anyio.create_task_group() as group:
            group.start_soon(self.watch, receive, group.cancel_scope)
            while True:
                self.sent_bytes += len(CHUNK)
                await send({"type": "http.response.body", "body": CHUNK, "more_body": True})

    async def watch(self, receive, scope):
        while (await receive())["type"] != "http.disconnect":
            pass
        self.disconnects += 1
        scope.cancel()

    async def early(self, send):
        await send({"type": "http.response.start", "status": 401, "headers": []})
        await send({"type": "http.response.body", "body": b"not you"})


class Client:
    """An h2 connection that reads, and opens its windows, only when told to."""

    def __init__(self, reader, writer):
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.reader, self.writer = reader, writer
        self.received = deque()

    def request(self, path, *, end_stream=True, headers=(), method="GET"):
        stream_id = self.h2.get_next_available_stream_id()
        pseudo = [(":method", method), (":path", path), (":scheme", "http"), (":authority", "localhost")]
        self.h2.send_headers(stream_id, [*pseudo, *headers], end_stream=end_stream)
        self.flush()
        return stream_id

    def open_windows(self, *stream_ids):
        for stream_id in (None, *stream_ids):
            self.h2.increment_flow_control_window(2**30, stream_id)
        self.flush()

    def flush(self):
        self.writer.write(self.h2.data_to_send())

    async def events(self):
        while True:
            while self.received:
                yield self.received.popleft()
            data = await self.reader.read(65536)
            if not data:
                return
            self.received.extend(self.h2.receive_data(data))
            self.flush()

    async def next(self, kind, stream_id=None):
        async for event in self.events():
            if isinstance(event, kind) and stream_id in (None, getattr(event, "stream_id", None)):
                return event
        raise EOFError(kind)


async def until_standing(count):
    """Wait until a count has not moved for a while: whoever moves it has been stopped."""
    seen = None
    while count() != seen:
        seen = count()
        await anyio.sleep(0.1)


async def until_refused(server: RunningServer):
    with suppress(ConnectionRefusedError):
        while True:
            _, writer = await asyncio.open_connection(*server.address)
            writer.close()


@asynccontextmanager
async def connected(server: RunningServer):
    reader, writer = await asyncio.open_connection(*server.address)
    client = Client(reader, writer)
    client.flush()
    try:
        yield client
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def test_streams_with_closed_windows_are_bounded_in_memory_then_reset_and_their_slots_freed():
    app = Flood()
    peak_before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with serving(app, write_stall_s=0.5) as server, connected(server) as client:
        with anyio.fail_after(30):
            streams = {client.request("/flood") for _ in range(20)}
            async for event in client.events():
                if isinstance(event, h2.events.StreamReset):
                    assert event.error_code == ErrorCodes.CANCEL
                    streams.discard(event.stream_id)
                if not streams:
                    break
            await until(lambda: app.running == 0)
            assert app.disconnects == 20
            # The connection itself is as good as before.
            stream_id = client.request("/early")
            assert dict((await client.next(h2.events.ResponseReceived, stream_id)).headers)[":status"] == "401"
    # One chunk beyond the buffer's mark for each stream, and the client's 64 KiB window.
    assert app.sent_bytes <= 20 * 3 * len(CHUNK) + 65_535
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak_before_kib < 50 * 1024


async def test_connection_that_is_not_read_at_all_is_cut_and_its_slots_freed():
    app = Flood()
    async with serving(app, write_stall_s=0.3) as server:
        before = open_descriptors()
        async with connected(server) as client:
            client.open_windows(*[client.request("/flood") for _ in range(5)])
            await until(lambda: app.disconnects == 5 and app.running == 0)
            assert app.sent_bytes < 8 * 2**20
        await descriptors_back_to(before)


async def test_reset_stream_is_a_disconnect_for_its_application_only():
    app = Flood()
    async with serving(app) as server, connected(server) as client:
        with anyio.fail_after(20):
            first, second = client.request("/flood"), client.request("/flood")
            await client.next(h2.events.ResponseReceived, second)
            client.h2.reset_stream(first)
            client.flush()
            await until(lambda: app.disconnects == 1)
            assert app.running == 1


async def test_connection_that_closes_is_a_disconnect_for_all_of_its_streams():
    app = Flood()
    async with serving(app) as server:
        before = open_descriptors()
        async with connected(server) as client:
            with anyio.fail_after(20):
                await client.next(h2.events.ResponseReceived, [client.request("/flood") for _ in range(5)][-1])
        await descriptors_back_to(before)
        assert (app.disconnects, app.running) == (5, 0)


async def test_body_that_goes_on_after_its_answer_is_reset_and_the_connection_lives_on():
    async with serving(Flood()) as server, connected(server) as client:
        with anyio.fail_after(20):
            for _ in range(20):
                stream_id = client.request("/early", end_stream=False, method="POST")
                client.h2.send_data(stream_id, bytes(1000))
                client.flush()
                reset = await client.next(h2.events.StreamReset, stream_id)
                assert reset.error_code == ErrorCodes.NO_ERROR


async def test_body_that_crosses_its_answer_on_the_wire_is_discarded():
    async with serving(Flood()) as server, connected(server) as client:
        with anyio.fail_after(20):
            for _ in range(15):
                stream_id = client.request("/early", end_stream=False, method="POST")
                for _ in range(4):
                    client.h2.send_data(stream_id, bytes(1000))
                    client.flush()
                    await asyncio.sleep(0)
            statuses = 0
            async for event in client.events():
                statuses += isinstance(event, h2.events.ResponseReceived)
                if statuses == 15:
                    break


async def test_oversized_body_gets_413_and_the_connection_lives_on():
    async with serving(BodyLimit(Flood(), max_body_bytes=1000)) as server, connected(server) as client:
        with anyio.fail_after(20):
            for headers in ([("content-length", "100000000")], []):
                stream_id = client.request("/early", end_stream=False, headers=headers, method="POST")
                client.h2.send_data(stream_id, bytes(2000))
                client.flush()
                answer = dict((await client.next(h2.events.ResponseReceived, stream_id)).headers)
                assert answer[":status"] == "413"
                await client.next(h2.events.StreamReset, stream_id)


async def test_cancelled_sending_on_a_congested_connection_loses_no_frame():
    app = Flood()
    async with serving(app) as server, connected(server) as client:
        with anyio.fail_after(20):
            client.open_windows(client.request("/flood"))
            await until_standing(lambda: app.sent_bytes)
            given_up = client.request("/impatient")
            await app.gave_up.wait()
            # A lost frame would leave the two ends with different header tables.
            after = client.request("/early")
            assert dict((await client.next(h2.events.ResponseReceived, given_up)).headers)[":status"] == "203"
            assert dict((await client.next(h2.events.ResponseReceived, after)).headers)[":status"] == "401"


async def test_application_that_fails_before_its_answer_is_a_500():
    async with serving(Flood()) as server, connected(server) as client:
        with anyio.fail_after(20):
            stream_id = client.request("/fail")
            answer = dict((await client.next(h2.events.ResponseReceived, stream_id)).headers)
            assert answer[":status"] == "500"
            await client.next(h2.events.StreamEnded, stream_id)


async def test_application_that_fails_in_its_answer_resets_its_stream_and_the_connection_lives_on():
    async with serving(Flood(), h2_max_concurrent_streams=2) as server, connected(server) as client:
        with anyio.fail_after(20):
            for _ in range(5):
                reset = await client.next(h2.events.StreamReset, client.request("/fail-midway"))
                assert reset.error_code == ErrorCodes.INTERNAL_ERROR


async def test_rapid_resets_close_the_connection():
    app = Flood()
    async with serving(app) as server, connected(server) as client:
        with anyio.fail_after(20):
            for _ in range(500):
                client.h2.reset_stream(client.request("/flood"))
                client.flush()
            ended = await client.next(h2.events.ConnectionTerminated)
            assert ended.error_code == ErrorCodes.ENHANCE_YOUR_CALM
            await until(lambda: app.running == 0)


@pytest.mark.parametrize("path", ["/\N{SNOWMAN}", ""])
async def test_request_line_that_the_server_cannot_read_resets_its_stream_only(path):
    async with serving(Flood()) as server, connected(server) as client:
        client.h2.config.validate_outbound_headers = False
        with anyio.fail_after(20):
            good = client.request("/early")
            await client.next(h2.events.StreamEnded, good)
            client.request(path)
            with suppress(EOFError):
                await client.next((h2.events.StreamReset, h2.events.ConnectionTerminated))
        async with connected(server) as other:
            with anyio.fail_after(20):
                await other.next(h2.events.StreamEnded, other.request("/early"))


async def test_request_that_cannot_be_served_does_not_keep_its_connection_open():
    async with serving(Flood(), keep_alive_timeout_s=0.3) as server, connected(server) as client:
        client.h2.config.validate_outbound_headers = False
        with anyio.fail_after(20):
            await client.next(h2.events.StreamReset, client.request("/\N{SNOWMAN}"))
            await client.next(h2.events.ConnectionTerminated)
            assert await client.reader.read() == b""


async def test_stream_that_its_client_reset_does_not_keep_its_connection_open():
    async with serving(Flood(), keep_alive_timeout_s=0.3) as server, connected(server) as client:
        with anyio.fail_after(20):
            stream_id = client.request("/flood")
            await client.next(h2.events.ResponseReceived, stream_id)
            client.h2.reset_stream(stream_id)
            client.flush()
            await client.next(h2.events.ConnectionTerminated)
            assert await client.reader.read() == b""


async def test_request_during_the_drain_is_refused_as_safe_to_retry_and_the_running_one_goes_on():
    app = Flood()
    async with serving(app, drain_timeout_s=3600) as server, connected(server) as client:
        with anyio.fail_after(20):
            first = client.request("/flood")
            client.open_windows(first)
            await client.next(h2.events.DataReceived, first)
            server.stop.set()
            await until_refused(server)
            reset = await client.next(h2.events.StreamReset, client.request("/early"))
            assert reset.error_code == ErrorCodes.REFUSED_STREAM
            await client.next(h2.events.DataReceived, first)
            client.h2.reset_stream(first)
            client.flush()
            await asyncio.wait([server.task])


async def test_idle_connection_is_told_that_the_server_goes():
    async with serving(Flood(), drain_timeout_s=3600) as server, connected(server) as client:
        with anyio.fail_after(20):
            await client.next(h2.events.StreamEnded, client.request("/early"))
            server.stop.set()
            ended = await client.next(h2.events.ConnectionTerminated)
            assert ended.error_code == ErrorCodes.NO_ERROR


async def test_more_streams_than_allowed_at_a_time_are_refused():
    async with serving(Flood(), h2_max_concurrent_streams=3) as server, connected(server) as client:
        with anyio.fail_after(20):
            changed = await client.next(h2.events.RemoteSettingsChanged)
            settings = {setting.setting: setting.new_value for setting in changed.changed_settings.values()}
    assert settings[h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS] == 3


@pytest.mark.parametrize("opened", [False, True])
async def test_shutdown_with_stalled_readers_ends_within_the_grace(opened):
    app = Flood()
    async with (
        serving(app, write_stall_s=3600, linger_s=3600, drain_timeout_s=0.2) as server,
        connected(server) as client,
    ):
        with anyio.fail_after(20):
            streams = [client.request("/flood") for _ in range(3)]
            if opened:
                client.open_windows(*streams)
            await until(lambda: app.running == 3)
            server.stop.set()
            await asyncio.wait([server.task])
    assert app.running == 0
