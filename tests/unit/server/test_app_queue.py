"""Messages on their way to the application."""

import asyncio

import pytest

from opta_router.server.repairs.app_queue import AppQueue

pytestmark = pytest.mark.anyio

BODY = {"type": "http.request", "body": b"x", "more_body": True}
GONE = {"type": "http.disconnect"}


@pytest.fixture
def anyio_backend():
    return "asyncio"


async def blocked(coroutine):
    """The task of a call that waits."""
    task = asyncio.ensure_future(coroutine)
    for _ in range(3):
        await asyncio.sleep(0)
    assert not task.done()
    return task


async def test_full_queue_makes_the_connection_wait_until_the_application_reads():
    queue = AppQueue(1)
    await queue.put(BODY)
    putting = await blocked(queue.put(BODY))
    assert await queue.get() is BODY
    await putting


async def test_disconnect_passes_a_full_queue_and_releases_who_waits_at_it():
    queue = AppQueue(1)
    await queue.put(BODY)
    putting = await blocked(queue.put(BODY))
    await queue.put(GONE)
    await putting
    assert [await queue.get() for _ in range(3)] == [BODY, GONE, GONE]


async def test_disconnect_wakes_a_reader():
    queue = AppQueue(1)
    getting = await blocked(queue.get())
    await queue.put(GONE)
    assert await getting is GONE


async def test_closed_queue_discards_what_comes_and_holds_nobody():
    queue = AppQueue(1)
    await queue.put(BODY)
    putting = await blocked(queue.put(BODY))
    queue.close()
    await putting
    await queue.put(BODY)
    assert await queue.get() is BODY
    (await blocked(queue.get())).cancel()


async def test_whoever_asked_is_told_that_the_client_has_left():
    queue, left = AppQueue(1), []
    queue.on_disconnect(lambda: left.append("once"))
    await queue.put(BODY)
    assert left == []
    await queue.put(GONE)
    assert left == ["once"]


async def test_whoever_asks_after_the_client_has_left_is_told_at_once():
    queue, left = AppQueue(1), []
    await queue.put(GONE)
    queue.on_disconnect(lambda: left.append("late"))
    assert left == ["late"]


async def test_leaving_after_the_answer_is_told_nobody():
    queue, left = AppQueue(1), []
    queue.on_disconnect(lambda: left.append("after"))
    queue.answered()
    await queue.put(GONE)
    assert left == []
    assert await queue.get() is GONE
