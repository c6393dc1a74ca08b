"""Requests on their way through the dispatcher, over a real link to a host that the test plays."""

import asyncio
import logging
import math
import socket
from contextlib import asynccontextmanager

import anyio
import msgspec
import pytest
from anyio.abc import UNIXSocketStream

from lanes import framing, wire
from lanes.client import Generation, Link
from lanes.errors import HostUnavailable, RequestRefused
from lanes.pairs import PairPolicy, Pairs
from opta_router import errors
from opta_router.answer import Arrival
from opta_router.dispatch import Dispatcher
from opta_router.drain_rate import UNMEASURED_RETRY_S
from opta_router.request import GenerationRequest
from opta_router.telemetry import RequestTrace
from policies.classify import Classification
from policies.quantities import Seconds
from policies.schema import (
    ApprovedPair,
    Config,
    InteractiveLane,
    LanesConfig,
    LaneSpeculation,
    ModelConfig,
    PresetConfig,
    SamplingPreset,
    SpeculationConfig,
    ThroughputLane,
)

pytestmark = pytest.mark.anyio

SPEC = wire.ModelSpec("m", "t", "d")
INFO = wire.ModelInfo("m", "t", None, 2048, 100, 1, 0, 0.1)
FACTS = wire.PairFacts(
    2048,
    1,
    0,
    0,
    2,
    0,
    same_vocabulary=True,
    same_template=True,
    cache_trimmable=True,
    paths=(wire.CallPath("interactive", "rounds"),),
)


def pairs_with(facts):
    """A pair that is resident, as a host would have it."""
    pairs = Pairs((SPEC,), PairPolicy())
    pairs.host_started(0, lambda message: None, lambda: None)
    pairs.received(wire.ModelPrepared("m", facts))
    pairs.received(wire.ModelLoaded(INFO))
    return pairs


class LinkedEngine:
    """What :class:`opta_router.engine.Engine` asks for, on one link."""

    def __init__(self, link):
        self.link = link
        self.pairs = pairs_with(FACTS)
        self.stats = None
        self.memory_bytes = 1000
        self.reasons = []
        self.refusal = None
        self.after_end = lambda: None

    def submit(self, submit, on_end, on_progress=None, on_interruption=None):
        def ended(event):
            on_end(event)
            self.after_end()

        if self.refusal is not None:
            raise self.refusal
        generation = Generation(submit, ended, on_progress, on_interruption)
        self.link.begin(generation)
        return generation

    def not_ready_reasons(self):
        return self.reasons

    def refusals(self):
        return self.reasons


class Host:
    """The host's end of the link."""

    def __init__(self, stream):
        self._stream = stream
        self._reader = framing.FrameReader(wire.ToHost)
        self._heard = []

    async def hears(self):
        while not self._heard:
            self._heard += self._reader.feed(await self._stream.receive())
        return self._heard.pop(0)

    async def says(self, *events):
        await self._stream.send(framing.encode(wire.Events(events)))

    async def dies(self):
        await self._stream.aclose()


class Clock:
    def __init__(self):
        self.now_s = 1000.0

    def __call__(self):
        return self.now_s


class Router:
    def __init__(self, configuration, dispatcher, engine, host, clock, tg):
        self.dispatcher, self.engine, self.host, self.clock, self._tg = dispatcher, engine, host, clock, tg
        self.configuration = configuration

    def ask(self, **arrival):
        return Asked(self.dispatcher, self._tg, {"configuration": self.configuration, **arrival})

    async def asks(self, **arrival):
        """A request that the host has heard of."""
        asked = self.ask(**arrival)
        return asked, await self.host.hears()

    def in_lane(self, lane="interactive"):
        """Slots in use and requests waiting; the books balance."""
        self.dispatcher._admission.check_integrity()
        stats = self.dispatcher.stats()[lane]
        return stats.active, stats.queued


class Asked:
    """One request in a task of its own, which can be cancelled as a client that leaves would."""

    def __init__(self, dispatcher, tg, arrival):
        self.texts = []
        self.answer = None
        self.error = None
        self.over = anyio.Event()
        self.offered = anyio.Event()
        self.scope = anyio.CancelScope()
        self._dispatcher = dispatcher
        self._arrival = an_arrival(dispatcher, Offered(self.offered), **arrival)
        tg.start_soon(self._run)

    async def _run(self):
        self.task = asyncio.current_task()
        try:
            with self.scope:
                async with self._dispatcher.answer(self._arrival) as answer:
                    self.answer = answer
                    await answer.started()
                    while (text := await answer.text()) is not None:
                        self.texts.append(text)
        except errors.RouterError as error:
            self.error = error
        finally:
            self.over.set()


class Offered(RequestTrace):
    """Says when the request was offered to admission."""

    def __init__(self, event):
        self._event = event

    def queued(self):
        self._event.set()


def an_arrival(dispatcher, offered, *, trace=None, configuration=None, lane="interactive", preset=None, **request):
    return Arrival(
        config=configuration or config(),
        request=GenerationRequest(operation="chat", model="m", prompt=wire.TextPrompt("x"), **request),
        verdict=Classification(model="m", lane=lane, route="default", preset=preset),
        sub_client="",
        trace=trace or offered,
        arrived_s=dispatcher.now_s(),
    )


def config(**changes):
    lanes = LanesConfig(interactive=InteractiveLane(**changes), throughput=ThroughputLane(max_active=1, max_queue=1))
    return Config(models=(ModelConfig(name="m", target="t"),), lanes=lanes)


@asynccontextmanager
async def routing(configuration=None):
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    clock = Clock()
    async with (
        await UNIXSocketStream.from_socket(ours) as router_end,
        await UNIXSocketStream.from_socket(theirs) as host_end,
        anyio.create_task_group() as tg,
    ):
        engine = LinkedEngine(a_link(router_end))
        tg.start_soon(engine.link.run)
        configuration = configuration or config()
        dispatcher = Dispatcher(configuration, engine, clock)
        with anyio.fail_after(20):
            yield Router(configuration, dispatcher, engine, Host(host_end), clock, tg)
        tg.cancel_scope.cancel()


def a_link(stream):
    return Link(stream, on_message=lambda message: None, on_settled=lambda generation: None)


@asynccontextmanager
async def replaced(router):
    """The host dies; what it worked on goes on on another, which is the block's."""
    await router.host.dies()
    while not router.engine.link.closed:
        await anyio.wait_all_tasks_blocked()
    lost = router.engine.link.close()
    for generation in lost:
        generation.lost(on_trial=True)
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    async with (
        await UNIXSocketStream.from_socket(ours) as router_end,
        await UNIXSocketStream.from_socket(theirs) as host_end,
        anyio.create_task_group() as tg,
    ):
        router.engine.link, router.host = a_link(router_end), Host(host_end)
        tg.start_soon(router.engine.link.run)
        for generation in lost:
            if not generation.ended:
                router.engine.link.begin(generation)
        yield
        tg.cancel_scope.cancel()


def ended(submit, reason="stop", tokens=1, **fields):
    return wire.Finished(submit.request_id, reason, 1, tokens, **fields)


def delta(submit, index, text):
    return wire.Delta(submit.request_id, index, (index,), text)


# the way of one request


async def test_an_answer_comes_as_it_is_made_and_its_end_frees_the_slot_once():
    async with routing() as router:
        asked, submit = await router.asks()
        router.clock.now_s += 0.25
        await router.host.says(wire.Started(submit.request_id, 1), delta(submit, 0, "a"), delta(submit, 1, "b"))
        await router.host.says(delta(submit, 2, "c"), ended(submit, "length", 3))
        await asked.over.wait()
        assert "".join(asked.texts) == "abc"
        ending = asked.answer.ending
        assert (ending.finished.reason, ending.opta.lane, ending.opta.route) == ("length", "interactive", "default")
        assert (ending.opta.queue_ms, ending.opta.ttft_ms) == (0.0, 250.0)
        assert ending.opta.speculative.reason == "prompt_lookup"
        assert router.in_lane() == (0, 0)


async def test_a_preset_fills_in_what_the_request_left_out():
    preset = PresetConfig(name="p", model="m", sampling=SamplingPreset(temperature=0.5, top_p=0.5, max_tokens=9))
    async with routing() as router:
        asked, submit = await router.asks(preset=preset, max_tokens=3)
        assert (submit.max_tokens, submit.sampling.temperature, submit.sampling.top_p) == (3, 0.5, 0.5)
        asked.scope.cancel()


async def test_requests_run_one_after_the_other_in_a_lane_of_one_slot():
    async with routing() as router:
        first, submit = await router.asks()
        second = router.ask()
        await second.offered.wait()
        assert router.in_lane() == (1, 1)
        router.clock.now_s += 2
        await router.host.says(wire.Started(submit.request_id, 1), ended(submit))
        submit_2 = await router.host.hears()
        assert (first.over.is_set(), router.in_lane()) == (True, (1, 0))
        await router.host.says(wire.Started(submit_2.request_id, 1), ended(submit_2))
        await second.over.wait()
        assert second.answer.ending.opta.queue_ms == 2000.0
        assert router.in_lane() == (0, 0)


# new bounds while requests run


async def test_more_slots_start_who_waits_and_the_running_request_does_not_notice():
    async with routing() as router:
        first, submit = await router.asks()
        second, third = router.ask(), router.ask()
        await second.offered.wait()
        await third.offered.wait()
        assert router.in_lane() == (1, 2)
        router.dispatcher.configure(config(max_active=2))
        submit_2 = await router.host.hears()
        assert router.in_lane() == (2, 1)
        await router.host.says(delta(submit, 0, "a"), ended(submit), delta(submit_2, 0, "b"), ended(submit_2))
        await first.over.wait()
        await second.over.wait()
        assert ("".join(first.texts), "".join(second.texts)) == ("a", "b")
        assert isinstance(await router.host.hears(), wire.Submit)
        assert router.in_lane() == (1, 0)


async def test_fewer_slots_take_none_away_and_are_in_force_when_one_comes_back():
    async with routing(config(max_active=2)) as router:
        first, submit = await router.asks()
        second, submit_2 = await router.asks()
        waiting = router.ask()
        await waiting.offered.wait()
        router.dispatcher.configure(config(max_active=1, max_queue=0))
        await router.host.says(delta(submit, 0, "a"), ended(submit))
        await first.over.wait()
        assert (router.in_lane(), first.error) == ((1, 1), None)
        refused = router.ask()
        await refused.over.wait()
        assert isinstance(refused.error, errors.QueueFull)
        await router.host.says(ended(submit_2))
        await second.over.wait()
        assert isinstance(await router.host.hears(), wire.Submit)
        assert (waiting.error, router.in_lane()) == (None, (1, 0))


async def test_a_request_speculates_as_the_configuration_said_when_it_came():
    pair = ApprovedPair(target="t", draft="d", evidence="e")
    on = Config(models=(ModelConfig(name="m", target="t", draft="d"),), speculation=SpeculationConfig(approved=(pair,)))
    off = msgspec.structs.replace(
        on, lanes=LanesConfig(interactive=InteractiveLane(speculation=LaneSpeculation(mode="off")))
    )
    async with routing(on) as router:
        before = router.ask()
        await before.offered.wait()
        after = router.ask(configuration=off)
        router.dispatcher.configure(off)
        submit = await router.host.hears()
        await router.host.says(ended(submit, speculative=wire.SpecCounters()))
        submit_2 = await router.host.hears()
        await router.host.says(ended(submit_2))
        await before.over.wait()
        await after.over.wait()
        assert (submit.num_draft_tokens, submit_2.num_draft_tokens) == (8, 0)
        reports = [asked.answer.ending.opta.speculative for asked in (before, after)]
        assert [(report.active, str(report.reason)) for report in reports] == [(True, "approved"), (False, "off")]


# clients that leave


async def test_a_client_that_leaves_the_queue_gives_its_place_back_and_the_host_never_hears_of_it():
    async with routing() as router:
        _, submit = await router.asks()
        leaver, stayer = router.ask(), router.ask()
        await leaver.offered.wait()
        await stayer.offered.wait()
        leaver.scope.cancel()
        await leaver.over.wait()
        assert router.in_lane() == (1, 1)
        await router.host.says(ended(submit))
        assert isinstance(await router.host.hears(), wire.Submit)
        assert (stayer.answer is not None, leaver.answer) == (True, None)


async def test_a_client_that_leaves_as_it_is_granted_a_slot_hands_it_on():
    async with routing() as router:
        _, submit = await router.asks()
        leaver, stayer = router.ask(), router.ask()
        await leaver.offered.wait()
        await stayer.offered.wait()
        router.engine.after_end = leaver.task.cancel  # its ticket is granted, and its task has not run yet
        await router.host.says(ended(submit))
        assert isinstance(await router.host.hears(), wire.Submit)
        assert (stayer.answer is not None, leaver.answer) == (True, None)
        assert router.in_lane() == (1, 0)


async def test_the_slot_of_a_client_that_left_is_free_when_the_device_has_let_go():
    async with routing() as router:
        leaver, submit = await router.asks()
        next_one = router.ask()
        await router.host.says(wire.Started(submit.request_id, 1), delta(submit, 0, "a"))
        await next_one.offered.wait()
        leaver.scope.cancel()
        await leaver.over.wait()
        assert await router.host.hears() == wire.Cancel(submit.request_id)
        assert router.in_lane() == (1, 1)
        await router.host.says(ended(submit, "cancelled"))
        assert isinstance(await router.host.hears(), wire.Submit)
        assert router.in_lane() == (1, 0)


# refusals


async def test_a_full_queue_and_a_draining_router_refuse_and_say_when_to_come_back():
    async with routing(config(max_queue=0)) as router:
        await router.asks()
        refused = router.ask()
        await refused.over.wait()
        assert isinstance(refused.error, errors.QueueFull)
        assert 1 <= refused.error.retry_after_s <= 60
        router.dispatcher.drain()
        late = router.ask(lane="throughput")
        await late.over.wait()
        assert isinstance(late.error, errors.Draining)
        assert router.in_lane() == (1, 0)
        assert router.dispatcher.not_ready_reasons() == ["draining"]


async def test_a_router_that_no_longer_drains_takes_requests_again_unless_it_is_about_to_stop():
    async with routing() as router:
        router.dispatcher.drain()
        router.dispatcher.undrain()
        asked, submit = await router.asks()
        assert router.dispatcher.not_ready_reasons() == []
        await router.host.says(ended(submit))
        await asked.over.wait()
        router.dispatcher.stop()
        with pytest.raises(errors.Draining):
            router.dispatcher.undrain()
        assert router.dispatcher.not_ready_reasons() == ["draining"]


def stats(active_memory_bytes):
    return wire.Stats(steps=1, lanes={}, active_memory_bytes=active_memory_bytes, peak_memory_bytes=1000)


async def test_while_memory_is_short_who_runs_and_who_waits_goes_on_and_nobody_else_is_taken():
    async with routing() as router:
        _, submit = await router.asks()
        waiting = router.ask()
        await waiting.offered.wait()
        router.engine.stats = stats(950)
        late = router.ask()
        await late.over.wait()
        assert (late.error.code, late.error.retry_after_s) == ("shedding", UNMEASURED_RETRY_S)
        assert router.dispatcher.not_ready_reasons() == [f"shedding: {late.error.message}"]
        assert "950 B of the device's 1000 B" in late.error.message
        assert router.in_lane() == (1, 1)
        await router.host.says(ended(submit))
        submit = await router.host.hears()
        router.engine.stats = stats(949)
        assert router.dispatcher.not_ready_reasons() == []
        await router.host.says(ended(submit))
        await waiting.over.wait()
        router.engine.stats = stats(1000)  # nothing runs: it would not become less
        _, submit = await router.asks()
        await router.host.says(ended(submit))
        assert router.dispatcher.stats()["interactive"].rejected == {"shedding": 1}


async def test_draining_turns_away_who_waits():
    async with routing() as router:
        await router.asks()
        waiting = router.ask()
        await waiting.offered.wait()
        router.dispatcher.drain()
        await waiting.over.wait()
        assert isinstance(waiting.error, errors.Draining)
        assert router.in_lane() == (1, 0)


async def test_a_request_waits_no_longer_than_its_lane_allows():
    async with routing(config(queue_timeout=Seconds(30))) as router:
        await router.asks()

        class TimeFlies(RequestTrace):
            def queued(self):
                router.clock.now_s += 31

        with pytest.raises(errors.DeadlineExceeded) as caught:
            async with router.dispatcher.answer(an_arrival(router.dispatcher, TimeFlies())):
                pass
        assert 1 <= caught.value.retry_after_s <= 60
        assert router.in_lane() == (1, 0)


async def test_an_engine_that_is_not_ready_takes_nothing():
    async with routing() as router:
        router.engine.reasons = ["engine is starting"]
        asked = router.ask()
        await asked.over.wait()
        assert isinstance(asked.error, errors.EngineUnavailable)
        assert "starting" in asked.error.message
        assert router.dispatcher.not_ready_reasons() == ["engine is starting"]


async def test_a_model_that_could_not_be_loaded_is_named_and_makes_the_router_unready_if_it_is_the_only_one():
    async with routing() as router:
        router.engine.pairs = Pairs((SPEC,), PairPolicy())
        router.engine.pairs.host_started(0, lambda message: None, lambda: None)
        router.engine.pairs.received(wire.ModelFailed("m", "no such file"))
        asked = router.ask()
        await asked.over.wait()
        assert isinstance(asked.error, errors.ModelUnavailable)
        assert router.dispatcher.not_ready_reasons() == ["model m: no such file"]


async def test_a_slot_is_given_back_when_the_engine_goes_between_the_grant_and_the_submission():
    async with routing() as router:
        router.engine.refusal = HostUnavailable("the engine is not running")
        asked = router.ask()
        await asked.over.wait()
        assert isinstance(asked.error, errors.EngineUnavailable)
        assert router.in_lane() == (0, 0)


async def test_a_model_in_quarantine_is_unavailable_before_the_queue_and_behind_it():
    async with routing() as router:
        router.engine.refusal = RequestRefused("model_unavailable", "m is in quarantine")
        late = router.ask()
        await late.over.wait()
        router.engine.pairs.host_lost()
        router.engine.pairs.quarantine("m", math.inf, "in quarantine: 3 engines died of it")
        early = router.ask()
        await early.over.wait()
        for asked in (late, early):
            assert isinstance(asked.error, errors.ModelUnavailable)
            assert "quarantine" in asked.error.message
        assert router.in_lane() == (0, 0)
        assert router.dispatcher.not_ready_reasons() == ["model m: in quarantine: 3 engines died of it"]


async def test_a_slot_is_given_back_when_the_pair_must_speculate_and_cannot():
    configuration = Config(
        models=(ModelConfig(name="m", target="t", draft="d"),), speculation=SpeculationConfig(require_supported=True)
    )
    async with routing(configuration) as router:
        router.engine.pairs = pairs_with(msgspec.structs.replace(FACTS, same_vocabulary=False))
        asked = router.ask()
        await asked.over.wait()
        assert isinstance(asked.error, errors.ModelUnavailable)
        assert router.in_lane() == (0, 0)


async def test_who_waits_for_a_model_holds_no_slot_and_is_served_when_it_is_there():
    async with routing() as router:
        router.engine.pairs = pairs = Pairs((SPEC,), PairPolicy())
        pairs.host_started(0, lambda message: None, lambda: None)
        asked = [router.ask(), router.ask()]
        for one in asked:
            await one.offered.wait()
        assert (router.in_lane(), pairs.view("m").waiting) == ((0, 0), 2)
        pairs.received(wire.ModelPrepared("m", FACTS))
        pairs.received(wire.ModelLoaded(INFO))
        submit = await router.host.hears()
        await router.host.says(ended(submit))
        submit_2 = await router.host.hears()
        assert pairs.view("m").in_use >= 1
        await router.host.says(ended(submit_2))
        for one in asked:
            await one.over.wait()
        assert [one.error for one in asked] == [None, None]
        assert (router.in_lane(), pairs.view("m").in_use) == ((0, 0), 0)


async def test_who_waits_for_a_model_is_turned_away_by_the_end_by_its_own_time_and_when_too_many_wait():
    impatient = config(queue_timeout=Seconds(0), max_queue=2)
    async with routing(config(max_queue=2)) as router:
        router.engine.pairs = pairs = Pairs((SPEC,), PairPolicy())
        pairs.host_started(0, lambda message: None, lambda: None)
        late = router.ask(configuration=impatient)
        await late.over.wait()
        assert isinstance(late.error, errors.DeadlineExceeded)
        assert "was not loaded in time" in late.error.message
        waiting = [router.ask(), router.ask()]
        for one in waiting:
            await one.offered.wait()
        refused = router.ask()
        await refused.over.wait()
        assert isinstance(refused.error, errors.QueueFull)
        router.dispatcher.drain()
        for one in waiting:
            await one.over.wait()
        assert {type(one.error) for one in waiting} == {errors.Draining}
        assert pairs.view("m").waiting == 0


# engines that fail


class Told(RequestTrace):
    """What a request's trace was told of its hosts."""

    def __init__(self):
        self.of = []

    def interrupted(self):
        self.of.append("interrupted")

    def resumed(self, emitted_tokens):
        self.of.append(emitted_tokens)


async def test_an_answer_pauses_while_its_host_is_replaced_and_says_so_at_its_end():
    async with routing() as router:
        told = Told()
        asked, submit = await router.asks(trace=told)
        await router.host.says(wire.Started(submit.request_id, 1), delta(submit, 0, "a"), delta(submit, 1, "b"))
        async with replaced(router):
            resubmitted = await router.host.hears()
            assert resubmitted.emitted == wire.Emitted((0, 1), 2)
            assert msgspec.structs.replace(resubmitted, emitted=wire.Emitted()) == submit
            await router.host.says(delta(submit, 2, "c"), ended(submit, "length", 3))
            await asked.over.wait()
        assert ("".join(asked.texts), asked.error) == ("abc", None)
        assert asked.answer.ending.opta.resumed == 1
        assert told.of == ["interrupted", 2]
        assert router.in_lane() == (0, 0)


async def test_a_waiting_request_stays_in_the_queue_while_the_host_is_replaced():
    async with routing() as router:
        running, submit = await router.asks()
        waiting = router.ask()
        await waiting.offered.wait()
        async with replaced(router):
            assert router.in_lane() == (1, 1)
            assert (await router.host.hears()).request_id == submit.request_id
            await router.host.says(delta(submit, 0, "a"), ended(submit))
            await running.over.wait()
            next_submit = await router.host.hears()
            await router.host.says(delta(next_submit, 0, "b"), ended(next_submit))
            await waiting.over.wait()
        assert ("".join(running.texts), "".join(waiting.texts)) == ("a", "b")
        assert (running.answer.ending.opta.resumed, waiting.answer.ending.opta.resumed) == (1, 0)


async def test_a_client_that_leaves_during_the_pause_frees_its_slot_at_once():
    async with routing() as router:
        leaver, submit = await router.asks()
        await router.host.says(wire.Started(submit.request_id, 1), delta(submit, 0, "a"))
        await router.host.dies()
        while not router.engine.link.closed:
            await anyio.wait_all_tasks_blocked()
        (generation,) = router.engine.link.close()
        generation.lost(on_trial=True)
        assert router.in_lane() == (1, 0)
        leaver.scope.cancel()
        await leaver.over.wait()
        assert router.in_lane() == (0, 0)


async def test_an_answer_that_was_moving_when_its_host_died_has_moved():
    async with routing(config(demote_after_tokens=2)) as router:
        asked, submit = await an_answer_that_outlives_its_budget(router)
        assert isinstance(await router.host.hears(), wire.Move)
        async with replaced(router):
            assert (await router.host.hears()).lane == "throughput"
            assert (router.in_lane(), router.in_lane("throughput")) == ((0, 0), (1, 0))
            await router.host.says(delta(submit, 2, "c"), ended(submit, "length", 3))
            await asked.over.wait()
        assert "".join(asked.texts) == "abc"
        assert (asked.answer.ending.opta.demoted.after_tokens, asked.answer.ending.opta.resumed) == (2, 1)
        assert router.in_lane("throughput") == (0, 0)


async def test_a_request_that_hosts_die_of_is_an_error_of_its_own_and_frees_its_slot():
    async with routing() as router:
        asked, _ = await router.asks()
        async with replaced(router):
            await router.host.hears()
            async with replaced(router):
                await asked.over.wait()
        assert (type(asked.error), asked.error.code) == (errors.PoisonRequest, "poison_request")
        assert router.in_lane() == (0, 0)


async def test_when_no_other_host_comes_up_the_answer_ends_with_an_error_that_may_be_tried_again():
    async with routing() as router:
        asked, submit = await router.asks()
        await router.host.says(wire.Failed(submit.request_id, "engine_died", "the engine does not come up"))
        await asked.over.wait()
        assert isinstance(asked.error, errors.EngineDied)
        assert router.in_lane() == (0, 0)


@pytest.mark.parametrize(
    ("code", "kind", "said"),
    [
        (wire.FailureCode.CONTEXT_LENGTH_EXCEEDED, errors.InvalidRequest, "context_length_exceeded"),
        (wire.FailureCode.INVALID_PROMPT, errors.InvalidRequest, "invalid_prompt"),
        (wire.FailureCode.MODEL_UNAVAILABLE, errors.ModelUnavailable, "model_unavailable"),
        (wire.FailureCode.ENGINE_ERROR, errors.EngineFault, "engine_error"),
        ("of a newer host", errors.EngineFault, "engine_error"),
    ],
)
async def test_what_the_host_refuses_has_a_code_for_the_client_and_frees_the_slot(code, kind, said):
    async with routing() as router:
        asked, submit = await router.asks()
        await router.host.says(wire.Failed(submit.request_id, code, "why"))
        await asked.over.wait()
        assert type(asked.error) is kind
        assert asked.error.code == said
        assert router.in_lane() == (0, 0)


async def test_a_fault_of_the_engine_is_not_told_to_the_client_in_the_engines_words():
    async with routing() as router:
        asked, submit = await router.asks()
        await router.host.says(wire.Failed(submit.request_id, wire.FailureCode.ENGINE_ERROR, "/secret/path: boom"))
        await asked.over.wait()
        assert "secret" not in asked.error.message


# moving to the other lane


async def an_answer_that_outlives_its_budget(router, **arrival):
    asked, submit = await router.asks(lane="auto", max_tokens=50, **arrival)
    await router.host.says(wire.Started(submit.request_id, 1), delta(submit, 0, "a"), delta(submit, 1, "b"))
    return asked, submit


async def test_an_auto_answer_that_outlives_its_budget_goes_on_in_the_throughput_lane():
    async with routing(config(demote_after_tokens=2)) as router:
        asked, submit = await an_answer_that_outlives_its_budget(router)
        assert await router.host.hears() == wire.Move(submit.request_id, "throughput")
        assert (router.in_lane(), router.in_lane("throughput")) == ((1, 0), (1, 0))
        moved = wire.Moved(submit.request_id, "throughput", 3)
        await router.host.says(delta(submit, 2, "c"), moved, delta(submit, 3, "d"), ended(submit, "length", 4))
        await asked.over.wait()
        assert "".join(asked.texts) == "abcd"
        opta = asked.answer.ending.opta
        assert (opta.lane, opta.route) == ("interactive", "auto:room")
        assert (opta.demoted.lane, opta.demoted.after_tokens) == ("throughput", 3)
        assert router.dispatcher.stats()["interactive"].demoted == 1
        assert (router.in_lane(), router.in_lane("throughput")) == ((0, 0), (0, 0))


async def test_the_interactive_slot_is_free_as_soon_as_the_answer_has_moved():
    async with routing(config(demote_after_tokens=2)) as router:
        asked, submit = await an_answer_that_outlives_its_budget(router)
        await router.host.hears()
        waiting = router.ask()
        await waiting.offered.wait()
        await router.host.says(wire.Moved(submit.request_id, "throughput", 2))
        assert (await router.host.hears()).lane == "interactive"
        assert (router.in_lane(), router.in_lane("throughput")) == ((1, 0), (1, 0))
        asked.scope.cancel()
        waiting.scope.cancel()


async def test_an_answer_that_could_not_move_goes_on_where_it_is():
    async with routing(config(demote_after_tokens=2)) as router:
        asked, submit = await an_answer_that_outlives_its_budget(router)
        await router.host.hears()
        await router.host.says(wire.Moved(submit.request_id, "interactive", 2), delta(submit, 2, "c"), ended(submit))
        await asked.over.wait()
        assert asked.answer.ending.opta.demoted is None
        assert (router.in_lane(), router.in_lane("throughput")) == ((0, 0), (0, 0))


async def test_an_answer_that_waits_to_move_and_ends_leaves_nothing_behind():
    async with routing(config(demote_after_tokens=2)) as router:
        _, background = await router.asks(lane="throughput")
        asked, submit = await an_answer_that_outlives_its_budget(router)
        await router.host.says(ended(submit, tokens=2))
        await asked.over.wait()
        await router.host.says(ended(background))
        next_one, heard = await router.asks(lane="throughput")
        assert isinstance(heard, wire.Submit)
        next_one.scope.cancel()


@pytest.mark.parametrize(
    ("lane", "changes", "max_tokens"),
    [
        ("interactive", {"demote_after_tokens": 2}, 50),
        ("auto", {"demote_after_tokens": None}, 50),
        ("auto", {"demote_after_tokens": 2}, 2),
    ],
    ids=["asked for", "no budget", "short enough"],
)
async def test_other_answers_stay_where_they_are(lane, changes, max_tokens):
    async with routing(config(**changes)) as router:
        asked, submit = await router.asks(lane=lane, max_tokens=max_tokens)
        await router.host.says(wire.Started(submit.request_id, 1), delta(submit, 0, "a"), delta(submit, 1, "b"))
        await router.host.says(delta(submit, 2, "c"), ended(submit, tokens=3))
        await asked.over.wait()
        assert asked.answer.ending.opta.demoted is None
        assert router.dispatcher.stats()["interactive"].demoted == 0
        assert router.dispatcher.stats()["throughput"].granted == 0


# a draft that is not worth it


SPECULATING = Config(
    models=(ModelConfig(name="m", target="t", draft="d"),),
    speculation=SpeculationConfig(
        approved=(ApprovedPair(target="t", draft="d", evidence="e"),),
        min_acceptance=0.5,
        acceptance_window=20,
        retry_after=Seconds(30),
    ),
)


async def answered(router, accepted, rejected, end=ended, **arrival):
    """One request, of which so many draft tokens were accepted and rejected; what its answer says, and its bound."""
    asked, submit = await router.asks(**arrival)
    counters = wire.SpecCounters(1, accepted + rejected, accepted, rejected) if submit.num_draft_tokens else None
    await router.host.says(end(submit, speculative=counters))
    await asked.over.wait()
    report = asked.answer.ending.opta.speculative
    return report.active, str(report.reason), submit.num_draft_tokens


async def test_a_pair_of_which_too_little_is_accepted_stops_says_why_and_comes_back(caplog):
    caplog.set_level(logging.INFO, "opta_router.speculation")
    async with routing(SPECULATING) as router:
        assert await answered(router, 2, 8) == (True, "approved", 8)
        router.dispatcher.configure(SPECULATING)  # a reload keeps the window
        assert await answered(router, 2, 8) == (True, "approved", 8)
        assert await answered(router, 0, 0) == (False, "low_acceptance", 0)
        assert await answered(router, 0, 0, num_draft_tokens=0) == (False, "client_off", 0)
        router.clock.now_s += 30
        assert await answered(router, 9, 1) == (True, "approved", 8)
        assert await answered(router, 9, 1) == (True, "approved", 8)
        reading = router.dispatcher.speculation.reading("m")
        assert reading.counters == wire.SpecCounters(4, 40, 22, 18)
        assert {str(outcome.reason): times for outcome, times in reading.outcomes.items()} == {
            "approved": 4,
            "low_acceptance": 1,
            "client_off": 1,
        }
        assert reading.gate.switched_off == 1
    assert [record.message for record in caplog.records if record.name == "opta_router.speculation"] == [
        "model m: speculation is switched off: 20% of 20 compared draft tokens were accepted; retried in 30 s",
        "model m: speculation is on again",
    ]


async def test_a_retry_that_is_refused_or_cancelled_leaves_the_next_request_its_turn():
    async with routing(SPECULATING) as router:
        await answered(router, 0, 20)
        router.clock.now_s += 30
        router.engine.refusal = HostUnavailable("gone")
        refused = router.ask()
        await refused.over.wait()
        assert isinstance(refused.error, errors.EngineUnavailable)
        router.engine.refusal = None
        leaver, submit = await router.asks()
        assert submit.num_draft_tokens == 8
        leaver.scope.cancel()
        assert isinstance(await router.host.hears(), wire.Cancel)
        await router.host.says(ended(submit, "cancelled"))
        await leaver.over.wait()
        failing, submit = await router.asks()
        assert submit.num_draft_tokens == 8
        await router.host.says(wire.Failed(submit.request_id, wire.FailureCode.ENGINE_ERROR, "broke"))
        await failing.over.wait()
        assert await answered(router, 9, 1) == (True, "approved", 8)


# what whoever looks sees of it


def seen(router):
    return [(flight.lane, flight.stage, flight.emitted_tokens) for flight in router.dispatcher.in_flight()]


async def test_whoever_looks_sees_who_waits_who_runs_and_how_far():
    async with routing() as router:
        asked, submit = await router.asks()
        waiting = router.ask()
        await waiting.offered.wait()
        drafts = wire.SpecCounters(1, 4, 2, 2)
        await router.host.says(wire.Started(submit.request_id, 1), delta(submit, 0, "a"))
        await router.host.says(wire.Delta(submit.request_id, 1, (1,), "b", drafts))
        while "".join(asked.texts) != "ab":
            await anyio.wait_all_tasks_blocked()
        assert seen(router) == [("interactive", "queued", 0), ("interactive", "running", 2)]
        assert [flight.speculative for flight in router.dispatcher.in_flight()] == [None, drafts]
        await router.host.says(ended(submit, tokens=2))
        await asked.over.wait()
        await router.host.hears()
        assert seen(router) == [("interactive", "running", 0)]
        waiting.scope.cancel()
        await waiting.over.wait()


async def test_an_answer_that_nobody_waits_for_is_seen_until_the_device_has_let_go():
    async with routing() as router:
        asked, submit = await router.asks()
        await router.host.says(wire.Started(submit.request_id, 1), delta(submit, 0, "a"))
        while not asked.texts:
            await anyio.wait_all_tasks_blocked()
        asked.scope.cancel()
        await asked.over.wait()
        assert seen(router) == [("interactive", "running", 1)]
        await router.host.says(ended(submit, "cancelled"))
        while seen(router):
            await anyio.wait_all_tasks_blocked()


async def test_an_answer_that_moved_is_seen_where_it_is():
    async with routing(config(demote_after_tokens=2)) as router:
        asked, submit = await an_answer_that_outlives_its_budget(router)
        await router.host.hears()
        await router.host.says(wire.Moved(submit.request_id, "throughput", 2), delta(submit, 2, "c"))
        while "".join(asked.texts) != "abc":
            await anyio.wait_all_tasks_blocked()
        assert seen(router) == [("throughput", "running", 3)]
        asked.scope.cancel()


async def test_what_was_drafted_is_marked_in_the_text_as_it_is_given_out():
    async with routing() as router:
        asked, submit = await router.asks(include_drafted=True)
        assert submit.mark_drafted
        await router.host.says(
            wire.Started(submit.request_id, 1),
            wire.Delta(submit.request_id, 0, (1, 2), "abc", drafted=((0, 2),)),
            wire.Delta(submit.request_id, 2, (3,), "de", drafted=((1, 2),)),
            ended(submit, tokens=3),
        )
        await asked.over.wait()
        assert ("".join(asked.texts), asked.answer.drafted) == ("abcde", ((0, 2), (4, 5)))
