"""Answers that move to the other lane."""

import pytest

from lanes import wire
from tests.unit.opta_router.dispatching import an_answer_that_outlives_its_budget, config, delta, ended, routing

pytestmark = pytest.mark.anyio


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
