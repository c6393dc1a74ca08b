"""What speculation does for each pair, as metrics. A model without a draft is among them once tokens were drafted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeAlias

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from lanes.wire import SpecCounters
from opta_router.speculation import PairReading
from opta_router.telemetry import names
from policies.acceptance import GateState

NO_DRAFT: Final = "none"

ReadPairs: TypeAlias = Callable[[], Sequence[PairReading]]
_Observe: TypeAlias = Callable[[CallbackOptions], Iterator[Observation]]

_COUNTS: Final[tuple[tuple[str, str, str, Callable[[SpecCounters], int]], ...]] = (
    (names.METRIC_SPEC_ACCEPTED, "{token}", "Draft tokens that became the answer's.", lambda c: c.accepted),
    (names.METRIC_SPEC_REJECTED, "{token}", "Draft tokens that the target refused.", lambda c: c.rejected),
    (names.METRIC_SPEC_IGNORED, "{token}", "Draft tokens that were never compared.", lambda c: c.ignored),
    (names.METRIC_SPEC_PROPOSED, "{token}", "Draft tokens: accepted, rejected and ignored.", lambda c: c.proposed),
    (names.METRIC_SPEC_ROUNDS, "{round}", "Passes of the target over draft tokens.", lambda c: c.rounds),
)


def observe_pairs(meter: Meter, read: ReadPairs) -> None:
    """Serve every pair's metrics from ``read``, which must only read."""
    for name, unit, description, value in _COUNTS:
        meter.create_observable_counter(name, [_counted(read, value)], unit, description)
    decided = "Requests by whether they speculated, and why."
    meter.create_observable_counter(names.METRIC_SPEC_REQUESTS, [_outcomes(read)], "{request}", decided)
    # No unit: "1" would make Prometheus' name end in ratio twice.
    ratio = "Accepted share of the compared draft tokens, over the window that switches speculation off."
    meter.create_observable_gauge(names.METRIC_SPEC_ACCEPTANCE_RATIO, [_ratio(read)], "", ratio)
    closed = "1 while a pair does not speculate because too little was accepted."
    meter.create_observable_gauge(names.METRIC_SPEC_LOW_ACCEPTANCE, [_closed(read)], "", closed)


def _of(pair: PairReading) -> dict[str, str]:
    return {names.ATTRIBUTE_MODEL: pair.model, names.ATTRIBUTE_DRAFT_MODEL: pair.draft or NO_DRAFT}


def _drafting(read: ReadPairs) -> Iterator[PairReading]:
    return (pair for pair in read() if pair.draft is not None or pair.counters.proposed)


def _counted(read: ReadPairs, value: Callable[[SpecCounters], int]) -> _Observe:
    def observe(_options: CallbackOptions) -> Iterator[Observation]:
        for pair in _drafting(read):
            yield Observation(value(pair.counters), _of(pair))

    return observe


def _outcomes(read: ReadPairs) -> _Observe:
    def observe(_options: CallbackOptions) -> Iterator[Observation]:
        for pair in read():
            for outcome, times in pair.outcomes.items():
                decided = {
                    names.ATTRIBUTE_REQUESTED: str(outcome.requested).lower(),  # Python's "True" is no label
                    names.ATTRIBUTE_ACTIVE: str(outcome.active).lower(),
                    names.ATTRIBUTE_REASON: str(outcome.reason),
                }
                yield Observation(times, {**_of(pair), **decided})

    return observe


def _ratio(read: ReadPairs) -> _Observe:
    def observe(_options: CallbackOptions) -> Iterator[Observation]:
        for pair in _drafting(read):
            if pair.gate.acceptance_ratio is not None:
                yield Observation(pair.gate.acceptance_ratio, _of(pair))

    return observe


def _closed(read: ReadPairs) -> _Observe:
    def observe(_options: CallbackOptions) -> Iterator[Observation]:
        for pair in _drafting(read):
            yield Observation(int(pair.gate.state is not GateState.ON), _of(pair))

    return observe
