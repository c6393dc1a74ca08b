"""The access log's lines."""

import logging

import pytest

from opta_router.http.access_log import AccessLog

SCOPE = {
    "type": "http",
    "method": "POST",
    "path": "/v1/x\ny",
    "query_string": b"key=canary",
    "client": ("192.0.2.7", 1234),
}


async def answered(scope, app):
    sent = []

    async def send(message):
        sent.append(message)

    await AccessLog(app)(scope, None, send)
    return sent


@pytest.mark.anyio
async def test_an_exchange_is_one_line_with_what_was_answered(caplog):
    caplog.set_level(logging.INFO)
    headers = [(b"x-opta-lane", b"interactive"), (b"x-opta-route", b"auto:room"), (b"content-type", b"text/plain")]
    start = {"type": "http.response.start", "status": 200, "headers": headers}
    bodies = [{"type": "http.response.body", "body": b"abc", "more_body": True}, {"type": "http.response.body"}]

    async def app(scope, receive, send):
        for message in (start, *bodies):
            await send(message)

    assert await answered(SCOPE, app) == [start, *bodies]
    (record,) = caplog.records
    fields = dict(record.fields)
    assert fields.pop("duration_ms") >= 0
    assert fields == {
        "method": "POST",
        "path": "/v1/x\ny",
        "status": 200,
        "sent_bytes": 3,
        "client": "192.0.2.7",
        "lane": "interactive",
        "route": "auto:room",
    }
    assert record.getMessage().startswith("POST /v1/x\\ny: 200 in ")
    assert "canary" not in record.getMessage()


@pytest.mark.anyio
async def test_an_application_that_fails_is_in_the_log_all_the_same(caplog):
    caplog.set_level(logging.INFO)

    async def app(scope, receive, send):
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError):
        await answered({**SCOPE, "client": None}, app)
    (record,) = caplog.records
    assert (record.fields["status"], record.fields["client"]) == (None, None)


@pytest.mark.anyio
async def test_what_is_no_http_exchange_passes(caplog):
    caplog.set_level(logging.INFO)

    async def app(scope, receive, send):
        await send({"type": "lifespan.startup.complete"})

    assert await answered({"type": "lifespan"}, app) == [{"type": "lifespan.startup.complete"}]
    assert caplog.records == []
