"""What speculation does for each model: who may speculate now, and what came of it. On one event loop; pure of I/O.

Counts are the engine's own, as the hosts report them at the end of each request, and are never inferred.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping

import msgspec

from lanes import wire
from policies.acceptance import AcceptanceGate, GateState, GateView, gate_rules
from policies.schema import Config, LaneName
from policies.speculation import (
    PairCapability,
    SpecDecision,
    SpecReason,
    SpecRequest,
    decide,
    spec_policy,
)

log = logging.getLogger(__name__)


class Outcome(msgspec.Struct, frozen=True):
    """What was decided of a request."""

    requested: bool
    active: bool
    reason: SpecReason


class PairReading(msgspec.Struct, frozen=True, kw_only=True):
    """One model since the router's start: the engine's counts, what was decided how often, and its gate now."""

    model: str
    draft: str | None
    counters: wire.SpecCounters
    outcomes: Mapping[Outcome, int]
    gate: GateView


class Attempt:
    """One request's decision, to be :meth:`over` when the request is."""

    def __init__(self, decision: SpecDecision, over: Callable[[wire.SpecCounters], None]) -> None:
        self.decision = decision
        self._over = over

    def over(self, event: wire.Finished | wire.Failed | None) -> None:
        """The request's last event; None if it never ran. Once."""
        counters = event.speculative if isinstance(event, wire.Finished) else None
        self._over(counters or wire.SpecCounters())


class _Pair:
    def __init__(self, gate: AcceptanceGate) -> None:
        self.gate = gate
        self.counters = wire.SpecCounters()
        self.outcomes: Counter[Outcome] = Counter()


class Speculation:
    """Every configured model's.

    Args:
        config: the configuration in force at the start; its models stay.
        now_s: a monotonic clock.
    """

    def __init__(self, config: Config, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        rules = gate_rules(config.speculation)
        self._drafts = {model.name: model.draft for model in config.models}
        self._pairs = {name: _Pair(AcceptanceGate(rules)) for name in self._drafts}

    def configure(self, config: Config) -> None:
        """Take new bounds; what was measured stays."""
        rules = gate_rules(config.speculation)
        for pair in self._pairs.values():
            pair.gate.configure(rules)

    def begin(
        self, model: str, request: SpecRequest, lane: LaneName, capability: PairCapability, config: Config
    ) -> Attempt:
        """Decide for a request that starts now.

        Raises:
            SpeculationUnsupported: see :func:`policies.speculation.decide`.
        """
        pair, policy = self._pairs[model], spec_policy(config)
        decision = decide(request, lane, capability, policy)
        granted = pair.gate.begin(self._now_s()) if decision.active else None
        if decision.active and granted is None:
            decision = decide(request, lane, msgspec.structs.replace(capability, low_acceptance=True), policy)
        pair.outcomes[Outcome(decision.requested, decision.active, decision.reason)] += 1

        def over(counters: wire.SpecCounters) -> None:
            pair.counters += counters
            if granted is not None:
                before = pair.gate.view(self._now_s()).state
                pair.gate.end(granted, counters.draft_accepted, counters.draft_rejected, self._now_s())
                _tell(model, before, pair.gate.view(self._now_s()))

        return Attempt(decision, over)

    def reset(self, model: str) -> None:
        """Its draft may be another one now: if speculation is off for what the old one did, try again at once."""
        self._pairs[model].gate.reset(self._now_s())

    def low_acceptance(self, model: str) -> bool:
        """Whether the model's gate keeps requests from speculating."""
        return self._pairs[model].gate.closed

    def reading(self, model: str) -> PairReading:
        """One model, now."""
        pair = self._pairs[model]
        return PairReading(
            model=model,
            draft=self._drafts[model],
            counters=pair.counters,
            outcomes=dict(pair.outcomes),
            gate=pair.gate.view(self._now_s()),
        )

    def readings(self) -> list[PairReading]:
        """All of them, in the configuration's order."""
        return [self.reading(model) for model in self._pairs]


def described(gate: GateView) -> str:
    """A gate that is not on, for people."""
    ratio = "no" if gate.acceptance_ratio is None else f"{gate.acceptance_ratio:.0%}"
    measured = f"{ratio} of {gate.compared_tokens} compared draft tokens were accepted"
    if gate.retry_in_s is None:
        return f"{measured} so far in a retry, by one request at a time"
    return f"{measured}; retried in {gate.retry_in_s:g} s"


def _tell(model: str, before: GateState, gate: GateView) -> None:
    if gate.state is before:
        return
    if gate.state is GateState.OFF:
        log.warning("model %s: speculation is switched off: %s", model, described(gate))
    else:
        log.info("model %s: speculation is on again", model)
