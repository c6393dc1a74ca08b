"""What BodyLimit holds, hands on and refuses, without a server."""

import anyio
import pytest

from opta_router.server import BodyLimit

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


def scope(*headers, http_version="1.1"):
    return {"type": "http", "http_version": http_version, "headers": list(headers)}


class Exchange:
    """A client whose body is `chunks`, and what it got back."""

    def __init__(self, *chunks):
        self.messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
        self.messages.append({"type": "http.request", "body": b"", "more_body": False})
        self.sent = []

    async def receive(self):
        return self.messages.pop(0) if self.messages else {"type": "http.disconnect"}

    async def send(self, message):
        self.sent.append(message)

    @property
    def status(self):
        return self.sent[0]["status"]

    @property
    def headers(self):
        return dict(self.sent[0]["headers"])


def recording_app(seen):
    async def app(scope, receive, send):
        seen.append(await receive())
        seen.append((await receive())["type"])

    return app


async def test_application_receives_the_whole_body_and_then_the_disconnect():
    seen, exchange = [], Exchange(b"ab", b"", b"c")
    limit = BodyLimit(recording_app(seen), max_body_bytes=3)
    await limit(scope(), exchange.receive, exchange.send)
    assert seen == [{"type": "http.request", "body": b"abc", "more_body": False}, "http.disconnect"]
    assert limit.stats()["held_bytes"] == 0


@pytest.mark.parametrize("declared", [b"4", b"99999999999999999999999999", b"-1", b"\xb2"])
async def test_declared_length_over_the_limit_is_refused_without_reading(declared):
    seen, exchange = [], Exchange(b"abcd")
    await BodyLimit(recording_app(seen), max_body_bytes=3)(
        scope((b"content-length", declared)), exchange.receive, exchange.send
    )
    assert (exchange.status, exchange.headers[b"connection"], seen) == (413, b"close", [])
    assert len(exchange.messages) == 2


async def test_body_that_exceeds_the_limit_unannounced_is_read_no_further():
    seen, exchange = [], Exchange(b"ab", b"cd", b"ef")
    limit = BodyLimit(recording_app(seen), max_body_bytes=3)
    await limit(scope((b"content-length", b"3")), exchange.receive, exchange.send)
    assert (exchange.status, seen, len(exchange.messages)) == (413, [], 2)
    assert limit.stats()["held_bytes"] == 0


async def test_refusal_over_http2_has_no_connection_header():
    exchange = Exchange()
    limit = BodyLimit(recording_app([]), max_body_bytes=3)
    await limit(scope((b"content-length", b"4"), http_version="2"), exchange.receive, exchange.send)
    assert exchange.status == 413
    assert b"connection" not in exchange.headers


@pytest.mark.parametrize("coding", [b"gzip", b"identity, br", b"x"])
async def test_content_coding_is_refused(coding):
    exchange = Exchange(b"a")
    await BodyLimit(recording_app([]))(scope((b"content-encoding", coding)), exchange.receive, exchange.send)
    assert (exchange.status, exchange.headers[b"accept-encoding"]) == (415, b"identity")


async def test_identity_is_no_content_coding():
    seen, exchange = [], Exchange(b"a")
    await BodyLimit(recording_app(seen))(scope((b"content-encoding", b"identity")), exchange.receive, exchange.send)
    assert seen[0]["body"] == b"a"


async def test_bodies_held_by_other_requests_count_towards_the_memory_bound():
    reading, full, seen = anyio.Event(), Exchange(b"abc"), []
    limit = BodyLimit(recording_app(seen), max_body_bytes=10, max_held_bytes=12)
    slow = Exchange(b"0123456789")

    async def receive_slowly():
        message = await slow.receive()
        if not message["more_body"]:
            reading.set()
            await anyio.sleep_forever()
        return message

    async with anyio.create_task_group() as group:
        group.start_soon(limit, scope(), receive_slowly, slow.send)
        await reading.wait()
        await limit(scope(), full.receive, full.send)
        assert (full.status, full.headers[b"retry-after"]) == (503, b"1")
        assert limit.stats() == {"held_bytes": 10, "max_held_bytes": 12}
        group.cancel_scope.cancel()
    assert seen == []


async def test_bytes_are_released_when_the_application_fails_without_reading():
    async def app(scope, receive, send):
        raise ValueError("no")

    exchange, limit = Exchange(b"abc"), BodyLimit(app)
    with pytest.raises(ValueError, match="no"):
        await limit(scope(), exchange.receive, exchange.send)
    assert limit.stats()["held_bytes"] == 0
