"""Requests whose engine dies, refuses or errs."""

import anyio
import msgspec
import pytest

from lanes import wire
from opta_router import errors
from opta_router.telemetry import RequestTrace
from tests.unit.opta_router.dispatching import (
    an_answer_that_outlives_its_budget,
    config,
    delta,
    ended,
    replaced,
    routing,
)

pytestmark = pytest.mark.anyio


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
