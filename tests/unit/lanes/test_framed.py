"""Frames over one end of a socket pair, of which the test holds the other."""

import socket
from contextlib import asynccontextmanager

import anyio
import pytest
from anyio.abc import UNIXSocketStream

from lanes import framing, wire
from lanes.errors import WireError
from lanes.framed import FramedSocket

pytestmark = pytest.mark.anyio

MANY_BYTES = 4 * 2**20  # more than a socket holds


def cancel(name):
    return wire.Cancel(name)


@asynccontextmanager
async def pair():
    """A framed socket, what it received, and the other end as a plain stream."""
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    received = []
    async with (
        await UNIXSocketStream.from_socket(ours) as stream,
        await UNIXSocketStream.from_socket(theirs) as other,
    ):
        with anyio.fail_after(10):
            yield FramedSocket(stream, wire.ToHost, received.append), received, other


async def test_messages_of_one_turn_are_one_write():
    async with pair() as (framed, _, other), anyio.create_task_group() as tg:
        tg.start_soon(framed.run)
        await anyio.wait_all_tasks_blocked()
        for name in "abc":
            framed.put(cancel(name))
        sent = b"".join(framing.encode(cancel(name)) for name in "abc")
        assert await other.receive() == sent
        framed.close()


async def test_what_was_queued_before_the_start_is_sent():
    async with pair() as (framed, _, other), anyio.create_task_group() as tg:
        framed.put(cancel("early"))
        await anyio.wait_all_tasks_blocked()
        tg.start_soon(framed.run)
        assert await other.receive() == framing.encode(cancel("early"))
        framed.close()


async def test_more_than_the_socket_holds_waits_and_arrives_in_order():
    names = [f"{number}-{'x' * MANY_BYTES}" for number in range(3)]
    wanted = b"".join(framing.encode(cancel(name)) for name in names)
    async with pair() as (framed, _, other), anyio.create_task_group() as tg:
        tg.start_soon(framed.run)
        for name in names:
            framed.put(cancel(name))
            await anyio.wait_all_tasks_blocked()
        got = b""
        while len(got) < len(wanted):
            got += await other.receive()
        assert got == wanted
        framed.put(cancel("after"))
        assert await other.receive() == framing.encode(cancel("after"))
        framed.close()


async def test_messages_come_in_order_until_the_other_side_closes():
    async with pair() as (framed, received, other):
        await other.send(framing.encode(cancel("a")) + framing.encode(cancel("b")))
        await other.aclose()
        await framed.run()
        assert received == [cancel("a"), cancel("b")]


async def test_last_words_are_heard_though_what_is_written_finds_nobody():
    async with pair() as (framed, received, other):
        await other.send(framing.encode(cancel("last")))
        await other.aclose()
        framed.put(cancel("unheard"))
        await framed.run()
        assert received == [cancel("last")]


async def test_garbage_ends_the_run():
    async with pair() as (framed, received, other):
        await other.send(b"\xff" * 8)
        with pytest.raises(WireError, match="announced"):
            await framed.run()
        assert received == []


async def test_nothing_is_handed_on_after_the_close():
    async with pair() as (framed, received, other):
        framed._on_message = lambda message: (received.append(message), framed.close())
        await other.send(framing.encode(wire.Shutdown()) + framing.encode(cancel("late")))
        await framed.run()
        assert received == [wire.Shutdown()]


async def test_a_run_that_is_cancelled_leaves_the_socket_to_its_owner():
    async with pair() as (framed, received, other):
        async with anyio.create_task_group() as tg:
            tg.start_soon(framed.run)
            await anyio.wait_all_tasks_blocked()
            tg.cancel_scope.cancel()
        await other.send(framing.encode(cancel("late")))
        await anyio.wait_all_tasks_blocked()
        assert received == []
