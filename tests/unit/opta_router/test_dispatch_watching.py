"""What whoever looks sees of requests on their way."""

import anyio
import pytest

from lanes import wire
from tests.unit.opta_router.dispatching import an_answer_that_outlives_its_budget, config, delta, ended, routing

pytestmark = pytest.mark.anyio


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
