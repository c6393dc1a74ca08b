"""The router's side of links, against hosts that the test plays over real socket pairs."""

import math
import socket
from contextlib import asynccontextmanager

import anyio
import pytest
from anyio.abc import UNIXSocketStream

from lanes import framing, wire
from lanes.client import Generation, Link
from lanes.errors import HostDied, HostUnavailable, RequestRefused, WireError
from lanes.resumption import Interrupted, Resumed

pytestmark = pytest.mark.anyio


class Host:
    """What the test says and hears as a host."""

    def __init__(self, stream):
        self._stream = stream
        self._reader = framing.FrameReader(wire.ToHost)
        self._heard = []

    async def says(self, *messages):
        await self._stream.send(b"".join(map(framing.encode, messages)))

    async def says_events(self, *events):
        await self.says(wire.Events(events))

    async def says_bytes(self, data):
        await self._stream.send(data)

    async def hears(self):
        while not self._heard:
            self._heard += self._reader.feed(await self._stream.receive())
        return self._heard.pop(0)

    async def dies(self):
        await self._stream.aclose()


class Router:
    """A link with its books: how each request ended, what came that is not a request's, how the link ended."""

    def __init__(self, stream):
        self.messages = []
        self.ends = []
        self.settled = []
        self.error = None
        self.lost = []
        self.closed = anyio.Event()
        self.link = Link(stream, on_message=self.messages.append, on_settled=self._settled)

    async def run(self):
        try:
            await self.link.run()
        except* WireError as group:
            self.error = group.exceptions[0]
        finally:
            self.lost = self.link.close()
            for generation in self.lost:
                generation.lost(on_trial=True)
            self.closed.set()

    def submit(self, request_id, **callbacks):
        generation = Generation(submission(request_id), lambda end: self.ends.append((request_id, end)), **callbacks)
        self.link.begin(generation)
        return generation

    def _settled(self, generation):
        self.settled.append(generation.request_id)


def submission(request_id):
    return wire.Submit(request_id, "m", "interactive", wire.TextPrompt("x"), 8, wire.Sampling())


def delta(request_id, index, *token_ids):
    return wire.Delta(request_id, index, token_ids, f"<{index}>")


def finished(request_id, tokens=1):
    return wire.Finished(request_id, "stop", 1, tokens)


@asynccontextmanager
async def connected():
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    async with (
        await UNIXSocketStream.from_socket(ours) as router_end,
        await UNIXSocketStream.from_socket(theirs) as host_end,
        anyio.create_task_group() as tg,
    ):
        router = Router(router_end)
        tg.start_soon(router.run)
        with anyio.fail_after(10):
            yield router, Host(host_end)
        tg.cancel_scope.cancel()


def tokens_of(events):
    """The tokens of an answer, whose deltas follow on from each other."""
    token_ids = []
    for event in events:
        if isinstance(event, wire.Delta):
            assert event.index == len(token_ids)
            token_ids += event.token_ids
    return token_ids


async def all_events(generation):
    events = []
    while not events or not isinstance(events[-1], wire.Finished):
        events += await generation.receive()
    return events


async def test_requests_share_a_link_and_each_receives_its_own_events_in_order():
    async with connected() as (router, host):
        a, b = router.submit("a"), router.submit("b")
        assert [await host.hears(), await host.hears()] == [submission("a"), submission("b")]
        assert router.link.active == 2
        await host.says_events(wire.Started("b", 1), delta("b", 0, 5), wire.Started("a", 1), delta("a", 0, 7, 8))
        await host.says_events(delta("a", 2, 9), finished("a", 3), delta("b", 1, 6), finished("b", 2))
        assert await all_events(a) == [
            wire.Started("a", 1),
            delta("a", 0, 7, 8),
            delta("a", 2, 9),
            finished("a", 3),
        ]
        joined = wire.Delta("b", 0, (5, 6), "<0><1>")  # nobody had received the first when the second came
        assert await all_events(b) == [wire.Started("b", 1), joined, finished("b", 2)]
        assert router.ends == [("a", finished("a", 3)), ("b", finished("b", 2))]
        assert router.link.active == 0


async def test_an_unread_request_delays_nobody():
    async with connected() as (router, host):
        stalled, reading = router.submit("stalled"), router.submit("reading")
        for index in range(2000):
            await host.says_events(delta("stalled", index, index), delta("reading", index, 2))
        await host.says_events(finished("reading", 2000))
        assert tokens_of(await all_events(reading)) == [2] * 2000
        await host.says_events(finished("stalled", 2000))
        assert tokens_of(await all_events(stalled)) == list(range(2000))


@pytest.mark.parametrize("lengths", [[1] * 5000, [8] * 700, [1, 9, 2] * 500, [0, 1, 0] * 500, [50, *[1] * 2000]])
async def test_what_a_stalled_reader_has_not_taken_is_a_few_events_with_nothing_lost(lengths):
    async with connected() as (router, host):
        stalled = router.submit("a")
        expected_tokens, expected_text = [], ""
        for number, length in enumerate(lengths):
            token_ids = tuple(range(number, number + length))
            await host.says_events(wire.Delta("a", len(expected_tokens), token_ids, f"<{number}>"))
            expected_tokens += token_ids
            expected_text += f"<{number}>"
        await host.says_events(finished("a", len(expected_tokens)))
        while not stalled.ended:
            await anyio.wait_all_tasks_blocked()
        *deltas, _ = events = await stalled.receive()
        assert len(events) <= math.log2(len(expected_tokens)) + 3
        assert tokens_of(events) == expected_tokens
        assert "".join(event.text for event in deltas) == expected_text


async def test_what_was_received_is_not_given_again_with_what_comes_next():
    async with connected() as (router, host):
        generation = router.submit("a")
        await host.says_events(wire.Started("a", 1), delta("a", 0, 1, 2))
        assert await generation.receive() == [wire.Started("a", 1), delta("a", 0, 1, 2)]
        await host.says_events(delta("a", 2, 3, 4), finished("a", 4))
        assert await all_events(generation) == [delta("a", 2, 3, 4), finished("a", 4)]


async def test_what_is_not_a_requests_event_goes_to_the_owner():
    async with connected() as (router, host):
        generation = router.submit("a")
        await host.says(wire.Ready(), wire.ModelUnloaded("m"))
        await host.says_events(finished("a"))
        await generation.receive()
        assert router.messages == [wire.Ready(), wire.ModelUnloaded("m")]


@pytest.mark.parametrize(
    "wrong",
    [
        [delta("a", 1, 5)],  # a gap before the first
        [delta("a", 0, 5, 6), delta("a", 1, 6)],  # an overlap
        [delta("a", 0, 5), delta("a", 0, 5)],  # a duplicate
        [delta("a", 0, 5, 6), delta("a", 3, 7)],  # a gap
    ],
)
async def test_tokens_out_of_order_end_the_link_and_its_requests_can_go_elsewhere(wrong):
    async with connected() as (router, host):
        a, b = router.submit("a"), router.submit("b")
        await host.says_events(*wrong)
        await router.closed.wait()
        assert isinstance(router.error, WireError)
        assert "request a: delta at token" in str(router.error)
        assert (router.lost, router.ends) == ([a, b], [])


async def test_a_request_that_moves_unasked_ends_the_link():
    async with connected() as (router, host):
        router.submit("a")
        await host.says_events(delta("a", 0, 5), wire.Moved("a", "throughput", 1))
        await router.closed.wait()
        assert "request a: moved, though nobody asked" in str(router.error)


async def test_garbage_ends_the_link_and_its_requests_can_go_elsewhere():
    async with connected() as (router, host):
        generation = router.submit("a")
        await host.says_bytes(b"\xff" * 64)
        await router.closed.wait()
        assert isinstance(router.error, WireError)
        assert (router.lost, router.ends) == ([generation], [])


async def test_when_the_host_dies_who_is_done_is_done_and_the_others_are_free_to_go():
    async with connected() as (router, host):
        done, halfway, queued = (router.submit(name) for name in ("done", "halfway", "queued"))
        await host.says_events(delta("done", 0, 1), finished("done"), delta("halfway", 0, 1, 2))
        await host.dies()
        await router.closed.wait()
        assert await all_events(done) == [delta("done", 0, 1), finished("done")]
        assert await halfway.receive() == [delta("halfway", 0, 1, 2)]
        assert router.lost == [halfway, queued]
        assert [request_id for request_id, _ in router.ends] == ["done"]
        assert (router.link.active, router.error) == (0, None)


async def test_whoever_asks_on_after_the_end_is_not_left_waiting():
    async with connected() as (router, host):
        generation = router.submit("a")
        await host.says_events(finished("a"))
        await all_events(generation)
        with pytest.raises(HostDied):
            await generation.receive()


async def test_a_dead_link_takes_no_request():
    async with connected() as (router, host):
        await host.dies()
        await router.closed.wait()
        with pytest.raises(HostUnavailable):
            router.submit("late")
        assert router.ends == []


async def test_a_request_goes_on_on_another_link_and_its_reader_sees_one_stream():
    async with connected() as (old, first_host), connected() as (new, second_host):
        told = []
        generation = old.submit("a", on_interruption=told.append)
        first_delta = wire.Delta("a", 0, (5, 6), "<0>", wire.SpecCounters(1, 2, 1, 1))
        await first_host.says_events(wire.Started("a", 3), first_delta)
        await first_host.dies()
        await old.closed.wait()
        assert told == [Interrupted()]
        new.link.begin(generation)
        heard = await second_host.hears()
        assert heard == wire.Submit(
            *("a", "m", "interactive", wire.TextPrompt("x"), 8, wire.Sampling()),
            emitted=wire.Emitted((5, 6), 3, wire.SpecCounters(1, 2, 1, 1)),
        )
        assert told == [Interrupted(), Resumed(2)]
        await second_host.says_events(wire.Started("a", 3), delta("a", 2, 7), finished("a", 3))
        *_, last = events = await all_events(generation)
        assert [type(event) for event in events].count(wire.Started) == 1
        assert (tokens_of(events), last) == ([5, 6, 7], finished("a", 3))
        assert (old.ends, new.ends) == ([("a", finished("a", 3))], [])


async def test_a_host_that_repeats_a_token_or_forgets_one_after_a_resumption_is_refused():
    for index in (1, 3):
        async with connected() as (old, first_host), connected() as (new, second_host):
            generation = old.submit("a")
            await first_host.says_events(delta("a", 0, 5, 6))
            await first_host.dies()
            await old.closed.wait()
            new.link.begin(generation)
            await second_host.says_events(delta("a", index, 7))
            await new.closed.wait()
            assert f"delta at token {index}, expected 2" in str(new.error)
            assert tokens_of(await generation.receive()) == [5, 6]


async def test_what_an_old_host_still_says_never_reaches_a_request_on_its_new_one():
    async with connected() as (old, first_host), connected() as (new, second_host):
        generation = old.submit("a")
        await first_host.hears()
        for given_up in old.link.close():  # by the watchdog, say, while the host lives on
            given_up.lost(on_trial=True)
        new.link.begin(generation)
        await first_host.says_events(delta("a", 0, 1), finished("a"))
        await first_host.dies()
        await old.closed.wait()
        await second_host.says_events(delta("a", 0, 9), finished("a"))
        assert await all_events(generation) == [delta("a", 0, 9), finished("a")]
        assert old.ends == [("a", finished("a"))]


async def test_a_request_settles_on_a_link_once_when_it_has_got_going_or_ends():
    async with connected() as (router, host):
        for name in "abc":
            router.submit(name)
        await host.says_events(wire.Started("a", 1), wire.Started("b", 1), delta("b", 0, 1), delta("c", 0, 1))
        await host.says_events(delta("b", 1, 1), delta("b", 2, 1))
        await host.says_events(finished("b", 3), wire.Failed("a", "engine_error", "broken"))
        await host.dies()
        await router.closed.wait()
        assert (router.settled, router.link.unsettled) == (["b", "a"], {"c"})


async def test_who_is_cancelled_between_two_hosts_ends_at_once_and_who_was_before_never_goes_to_another():
    async with connected() as (router, host):
        between, before = router.submit("between"), router.submit("before")
        await host.says_events(wire.Started("between", 4), delta("between", 0, 1, 2))
        before.cancel()
        await host.dies()
        await router.closed.wait()
        assert router.ends == [("before", wire.Finished("before", "cancelled", 0, 0))]
        between.cancel()
        between.cancel()
        end = wire.Finished("between", "cancelled", 4, 2)
        assert router.ends[1:] == [("between", end)]
        assert await all_events(between) == [wire.Started("between", 4), delta("between", 0, 1, 2), end]


async def test_a_move_that_was_under_way_ends_where_it_was_going_to():
    async with connected() as (old, first_host), connected() as (new, second_host):
        progress = []
        generation = old.submit("a", on_progress=progress.append)
        await first_host.says_events(delta("a", 0, 5, 6))
        while not progress:
            await anyio.wait_all_tasks_blocked()
        generation.move("throughput")
        await first_host.dies()
        await old.closed.wait()
        new.link.begin(generation)
        heard = await second_host.hears()
        assert (heard.lane, heard.emitted.token_ids) == ("throughput", (5, 6))
        assert progress[1:] == [wire.Moved("a", "throughput", 2)]
        await second_host.says_events(wire.Moved("a", "throughput", 2))
        await new.closed.wait()  # nobody asked this host to move it


async def test_who_has_moved_goes_on_in_its_new_lane_and_who_could_not_move_in_the_old_one():
    for lane in ("throughput", "interactive"):
        async with connected() as (old, first_host), connected() as (new, second_host):
            generation = old.submit("a")
            await first_host.hears()
            generation.move("throughput")
            await first_host.says_events(wire.Moved("a", lane, 0))
            await first_host.dies()
            await old.closed.wait()
            new.link.begin(generation)
            assert (await second_host.hears()).lane == lane


async def test_a_refused_request_raises_its_code_behind_its_events_and_spares_the_others():
    async with connected() as (router, host):
        bad, good = router.submit("bad"), router.submit("good")
        failed = wire.Failed("bad", wire.FailureCode.CONTEXT_LENGTH_EXCEEDED, "too long")
        await host.says_events(wire.Started("bad", 9), failed, delta("good", 0, 1), finished("good"))
        assert await bad.receive() == [wire.Started("bad", 9)]
        with pytest.raises(RequestRefused, match="too long") as caught:
            await bad.receive()
        assert caught.value.code == "context_length_exceeded"
        assert len(await all_events(good)) == 2
        assert router.ends == [("bad", failed), ("good", finished("good"))]


async def test_a_cancelled_request_ends_when_the_host_says_so_and_not_before():
    async with connected() as (router, host):
        generation = router.submit("a")
        await host.hears()
        generation.cancel()
        assert await host.hears() == wire.Cancel("a")
        assert not generation.ended
        await host.says_events(delta("a", 0, 1), wire.Finished("a", "cancelled", 1, 1))
        assert (await all_events(generation))[-1].reason == "cancelled"
        assert len(router.ends) == 1


async def test_an_ended_request_is_not_cancelled_and_late_events_of_it_are_dropped():
    async with connected() as (router, host):
        first = router.submit("a")
        await host.hears()
        await host.says_events(finished("a"), delta("a", 5, 1), finished("a"))
        await all_events(first)
        first.cancel()
        second = router.submit("b")
        assert await host.hears() == submission("b")
        await host.says_events(finished("b"))
        assert await all_events(second) == [finished("b")]
        assert [request_id for request_id, _ in router.ends] == ["a", "b"]


async def test_an_id_is_refused_while_in_use_and_free_afterwards():
    async with connected() as (router, host):
        first = router.submit("a")
        with pytest.raises(ValueError, match="'a' is in use"):
            router.submit("a")
        assert await host.hears() == submission("a")
        await host.says_events(delta("a", 0, 1), finished("a"))
        await all_events(first)
        again = router.submit("a")
        assert await host.hears() == submission("a")
        await host.says_events(delta("a", 0, 1), finished("a"))
        assert len(await all_events(again)) == 2
