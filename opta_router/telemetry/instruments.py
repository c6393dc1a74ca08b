"""The instruments, each by its line in :data:`opta_router.telemetry.names.METRICS`.

All are *observable*: their numbers are kept by their owners anyway and read when somebody collects, so that a request
costs nothing. Counters have the SDK's cumulative temporality: each collection says the sum so far. A reader is called
on the event loop and on the sending thread, a few times for each collection: it must only read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeAlias

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from lanes.wire import PromptCacheStats, SpecCounters
from opta_router.speculation import PairReading
from opta_router.telemetry import names
from opta_router.telemetry.names import Metric
from opta_router.telemetry.readings import (
    EngineReading,
    LaneReading,
    ReadConfiguration,
    ReadDropped,
    ReadEngine,
    ReadLanes,
    ReadPromptCaches,
)
from opta_router.telemetry.tally import Tally
from policies.acceptance import GateState

ReadPairs: TypeAlias = Callable[[], Sequence[PairReading]]
Found: TypeAlias = Iterable[tuple[float, tuple[str, ...]]]
"""Numbers, each with the values of the metric's attributes in their order."""


class Instruments:
    """Makes them."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def of_lanes(self, read: ReadLanes) -> None:
        """Depth, slots, weight, device time, steps, rejections and spills."""

        def by_lane(metric: Metric, value: Callable[[LaneReading], float]) -> None:
            self._observe(metric, lambda: ((value(reading), (lane,)) for lane, reading in read().items()))

        by_lane(names.QUEUE_DEPTH, lambda lane: lane.queued)
        by_lane(names.REQUESTS_ACTIVE, lambda lane: lane.active)
        by_lane(names.WEIGHT, lambda lane: lane.weight)
        by_lane(names.DEVICE_TIME, lambda lane: lane.device_s)

        def bounded_steps() -> Found:
            for lane, reading in read().items():
                yield reading.bounded_steps - reading.late_steps, (lane, "false")
                yield reading.late_steps, (lane, "true")

        self._observe(names.BOUNDED_STEPS, bounded_steps)
        # A full queue is the only reason for one.
        self._observe(names.SPILLS, lambda: ((lane.spilled, (name, "queue_full")) for name, lane in read().items()))

        def rejections() -> Found:
            for lane, reading in read().items():
                for code, count in reading.rejected.items():
                    yield count, (lane, code)

        self._observe(names.REJECTIONS, rejections)

    def of_engine(self, read: ReadEngine) -> None:
        """The host and its models."""

        def one(metric: Metric, value: Callable[[EngineReading], float | None]) -> None:
            def found() -> Found:
                number = value(read())
                if number is not None:
                    yield number, ()

            self._observe(metric, found)

        one(names.RESTARTS, lambda engine: engine.restarts)
        one(names.RESUMED_REQUESTS, lambda engine: engine.resumed)
        one(names.HOST_READY, lambda engine: int(engine.ready))
        one(names.HOST_MEMORY, lambda engine: engine.memory_bytes)
        self._observe(names.MODEL_MEMORY, lambda: ((size, (name,)) for name, size in read().model_bytes.items()))

    def of_prompt_caches(self, read: ReadPromptCaches) -> None:
        """What is kept of prompts, and what it saves."""

        def by_model(metric: Metric, value: Callable[[PromptCacheStats], int]) -> None:
            self._observe(metric, lambda: ((value(stats), (model,)) for model, stats in read().items()))

        by_model(names.PROMPT_CACHE_HITS, lambda stats: stats.hits)
        by_model(names.PROMPT_CACHE_MISSES, lambda stats: stats.misses)
        by_model(names.PROMPT_CACHE_REUSED, lambda stats: stats.reused_tokens)
        by_model(names.PROMPT_CACHE_EVICTIONS, lambda stats: stats.evictions)
        by_model(names.PROMPT_CACHE_MEMORY, lambda stats: stats.size_bytes)

    def of_configuration(self, read: ReadConfiguration) -> None:
        """Reloads."""

        def reloads() -> Found:
            reading = read()
            yield reading.applied, ("applied",)
            yield reading.refused, ("refused",)

        self._observe(names.RELOADS, reloads)

    def of_telemetry(self, read: ReadDropped) -> None:
        """What was lost of it."""
        self._observe(names.DROPPED, lambda: ((count, (signal,)) for signal, count in read().items()))

    def of_requests(self, tally: Tally) -> None:
        """All counters of :class:`Tally`; its histograms go another way."""

        self._observe(names.REQUESTS, lambda: ((count, labels) for labels, count in tally.reading().requests.items()))
        self._observe(names.TOKENS, lambda: ((count, labels) for labels, count in tally.reading().tokens.items()))

    def of_pairs(self, read: ReadPairs) -> None:
        """What speculation does. A model without a draft is among them once tokens were drafted."""

        def drafting(metric: Metric, value: Callable[[PairReading], float | None]) -> None:
            def found() -> Found:
                for pair in read():
                    number = value(pair)
                    if number is not None and (pair.draft is not None or pair.counters.proposed):
                        yield number, _of(pair)

            self._observe(metric, found)

        drafting(names.DRAFT_ACCEPTED, lambda pair: pair.counters.accepted)
        drafting(names.DRAFT_REJECTED, lambda pair: pair.counters.rejected)
        drafting(names.DRAFT_IGNORED, lambda pair: pair.counters.ignored)
        drafting(names.DRAFT_PROPOSED, lambda pair: pair.counters.proposed)
        drafting(names.ROUNDS, lambda pair: pair.counters.rounds)
        drafting(names.LOOKUP_ROUNDS, lambda pair: pair.counters.lookup_rounds)
        drafting(names.LOOKUP_PROPOSED, lambda pair: pair.counters.lookup_proposed)
        drafting(names.LOOKUP_ACCEPTED, lambda pair: pair.counters.lookup_accepted)
        drafting(names.ACCEPTANCE, lambda pair: pair.gate.acceptance_ratio)
        drafting(names.LOW_ACCEPTANCE, lambda pair: int(pair.gate.state is not GateState.ON))

        def outcomes() -> Found:
            for pair in read():
                for outcome, times in pair.outcomes.items():
                    # Python's "True" is no label.
                    decided = (str(outcome.requested).lower(), str(outcome.active).lower(), str(outcome.reason))
                    yield times, (*_of(pair), *decided)

        self._observe(names.SPECULATION, outcomes)
        self._observe(names.POSITION_COMPARED, _by_position(read, lambda counters: counters.compared_at))
        self._observe(names.POSITION_ACCEPTED, _by_position(read, lambda counters: counters.accepted_at))

    def _observe(self, metric: Metric, read: Callable[[], Found]) -> None:
        def observe(_options: CallbackOptions) -> Iterator[Observation]:
            for value, labels in read():
                yield Observation(value, dict(zip(metric.attributes, labels, strict=True)))

        if metric.kind == "counter":
            self._meter.create_observable_counter(metric.name, [observe], metric.unit, metric.description)
        else:
            self._meter.create_observable_gauge(metric.name, [observe], metric.unit, metric.description)


def _of(pair: PairReading) -> tuple[str, str]:
    return pair.model, pair.draft or names.NO_DRAFT


def _by_position(read: ReadPairs, counts: Callable[[SpecCounters], tuple[int, ...]]) -> Callable[[], Found]:
    def found() -> Found:
        for pair in read():
            for position, count in enumerate(counts(pair.counters), start=1):
                yield count, (*_of(pair), str(position))

    return found
