"""Names and pages that may talk to us."""

import socket

import pytest

from opta_router.server import HostGuard

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


async def answer(guard_options, *headers):
    """The status of a request with these headers; 200 comes from the application."""
    sent = []

    async def app(scope, receive, send):
        await send({"status": 200})

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "http_version": "1.1", "headers": [(n.encode(), v.encode()) for n, v in headers]}
    await HostGuard(app, **guard_options)(scope, None, send)
    return sent[0]["status"]


LOOPBACK = {"bound_host": "127.0.0.1"}
WILDCARD = {"bound_host": "0.0.0.0"}


@pytest.mark.parametrize(
    ("options", "host", "status"),
    [
        (LOOPBACK, "localhost", 200),
        (LOOPBACK, "LocalHost:8400", 200),
        (LOOPBACK, "localhost.:8400", 200),
        (LOOPBACK, "127.0.0.1:1", 200),
        (LOOPBACK, "[::1]:8400", 200),
        (LOOPBACK, "attacker.example", 421),
        (LOOPBACK, "localhost.attacker.example", 421),
        (LOOPBACK, "127.0.0.1.attacker.example", 421),
        (LOOPBACK, "192.168.1.2", 421),
        (LOOPBACK, "", 421),
        ({"bound_host": "studio.lan"}, "studio.lan:8400", 200),
        ({"bound_host": "fe80::1"}, "[fe80::1]:8400", 200),
        ({"bound_host": "127.0.0.1", "allowed_hosts": ["Mac.lan"]}, "mac.lan", 200),
        (WILDCARD, "192.168.1.2:8400", 200),
        (WILDCARD, "[2001:db8::1]", 200),
        (WILDCARD, socket.gethostname(), 200),
        (WILDCARD, "attacker.example", 421),
        (WILDCARD, "", 421),
    ],
)
async def test_host_must_be_a_name_of_ours(options, host, status):
    assert await answer(options, ("host", host)) == status


async def test_host_must_be_given_once():
    assert await answer(LOOPBACK) == 421
    assert await answer(LOOPBACK, ("host", "localhost"), ("host", "localhost")) == 421


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:8400", 200),
        ("https://LOCALHOST:8400", 200),
        ("http://localhost:3000", 403),
        ("http://localhost", 403),
        ("http://localhost:8400.attacker.example", 403),
        ("null", 403),
        ("localhost:8400", 403),
        ("file://localhost:8400", 403),
        ("https://chat.example", 200),
        ("http://chat.example", 403),
    ],
)
async def test_origin_must_be_our_own_page_or_listed(origin, status):
    options = {**LOOPBACK, "allowed_origins": ["https://Chat.example/"]}
    assert await answer(options, ("host", "localhost:8400"), ("origin", origin)) == status
