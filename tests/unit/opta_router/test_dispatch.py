"""Requests on their way through the dispatcher: to their end, past new bounds, clients that leave, and refusals."""

import math

import msgspec
import pytest

from lanes import wire
from lanes.errors import HostUnavailable, RequestRefused
from lanes.pairs import PairPolicy, Pairs
from opta_router import errors
from opta_router.drain_rate import UNMEASURED_RETRY_S
from opta_router.telemetry import RequestTrace
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
)
from tests.unit.opta_router.dispatching import FACTS, INFO, SPEC, an_arrival, config, delta, ended, pairs_with, routing

pytestmark = pytest.mark.anyio


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
