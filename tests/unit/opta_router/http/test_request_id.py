"""What a request is called, whoever answers it."""

import pytest

from opta_router.http.request_id import RequestId, request_id_of

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


async def named(*given, kind="http", start="http.response.start"):
    """What the application was told, and the headers that were sent."""
    told, sent = [], []

    async def app(scope, receive, send):
        told.append(request_id_of(scope))
        await send({"type": start, "status": 204, "headers": [(b"x-other", b"1")]})
        await send({"type": "http.response.body", "body": b""})

    async def send(message):
        sent.append(message)

    scope = {"type": kind, "headers": [(b"x-request-id", value) for value in given], "extensions": {}}
    await RequestId(app)(scope, None, send)
    assert "headers" not in sent[1]
    (name,) = told
    return name, sent[0]["headers"]


@pytest.mark.parametrize("given", [[b"mine"], [b"x" * 128], [b"theirs", b"mine"]])
async def test_what_the_client_calls_it_is_echoed(given):
    name, headers = await named(*given)
    assert name == given[-1].decode()
    assert headers == [(b"x-other", b"1"), (b"x-request-id", given[-1])]


@pytest.mark.parametrize("given", [[], [b""], [b"x" * 129], [b"with space"], [b"caf\xe9"], [b"a\x00b"]])
async def test_without_a_name_that_can_be_echoed_one_is_made(given):
    name, headers = await named(*given)
    assert name.startswith("req-")
    assert name != (await named(*given))[0]
    assert headers[-1] == (b"x-request-id", name.encode())


@pytest.mark.parametrize("start", ["websocket.accept", "websocket.http.response.start"])
async def test_a_handshake_is_named_too(start):
    name, headers = await named(b"mine", kind="websocket", start=start)
    assert (name, headers[-1]) == ("mine", (b"x-request-id", b"mine"))


async def test_a_lifespan_is_no_request():
    async def app(scope, receive, send):
        await send({"type": "lifespan.startup.complete"})

    sent = []

    async def send(message):
        sent.append(message)

    await RequestId(app)({"type": "lifespan"}, None, send)
    assert sent == [{"type": "lifespan.startup.complete"}]
