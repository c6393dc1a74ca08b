"""Pairs of which too little is accepted."""

import logging

import pytest

from lanes import wire
from lanes.errors import HostUnavailable
from opta_router import errors
from policies.quantities import Seconds
from policies.schema import (
    ApprovedPair,
    Config,
    ModelConfig,
    SpeculationConfig,
)
from tests.unit.opta_router.dispatching import ended, routing

pytestmark = pytest.mark.anyio


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
