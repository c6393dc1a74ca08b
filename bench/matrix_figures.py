"""What ``bench matrix`` measured, from single answers to cells and comparisons. Pure.

Whatever is compared was measured in turn, a moment apart: a *sample* is a few prompts asked at once, and stands beside
the sample of the same prompts the other way. Ratios are taken within such pairs, then the median over rounds, then the
geometric mean over prompts, so that a noisy machine disturbs both sides alike and one hiccup disturbs neither.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Literal, TypeAlias

import msgspec

from bench.prompts import PromptClass
from bench.statistics import median, quantile
from lanes.wire import Lane, Proposer, SpecCounters
from opta_router.request import ProposerReport, SpeculativeReport, proposers_of

Way: TypeAlias = Literal["on", "off"]
"""Speculation as the service decides, or switched off by the request."""

WAYS: Final[tuple[Way, Way]] = ("on", "off")


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where answers are measured. ``background`` streams keep the throughput lane busy meanwhile."""

    model: str
    prompts: PromptClass
    lane: Lane
    concurrency: int = 1
    background: int = 0


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """When something is asked, and how. ``number`` says which prompts of the class."""

    place: Place
    way: Way
    round: int
    number: int


class Sample(Turn, frozen=True, kw_only=True):
    """As many answers as the place has concurrency, asked at once.

    ``wall_s`` is from the first question to the last answer's end; ``ttfts_ms`` are seen by the client.
    """

    wall_s: float
    tokens: int
    ttfts_ms: tuple[float, ...]
    texts: tuple[str, ...]
    speculative: tuple[SpeculativeReport, ...]

    @property
    def tokens_per_s(self) -> float:
        """Of all its answers together."""
        return self.tokens / self.wall_s


class SpeculativeSection(msgspec.Struct, frozen=True, kw_only=True):
    """What speculation did for some answers: the engine's own counts, added up.

    ``active``: for every one of them. ``reasons``: of how many answers. ``proposers``: the part of the draft model and
    of prompt lookup.
    """

    active: bool
    reasons: dict[str, int]
    telemetry: str
    rounds: int
    proposed: int
    accepted: int
    rejected: int
    ignored: int
    acceptance_ratio: float | None
    mean_accepted_tokens: float | None
    proposers: dict[Proposer, ProposerReport] = {}


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One place, one way. Medians over samples; ``tokens_per_s`` of all streams together."""

    place: Place
    way: Way
    answers: int
    tokens: int
    tokens_per_s: float
    ttft_ms: float
    ttft_p95_ms: float
    speculative: SpeculativeSection


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Speculation on against off at one place; above 1 is better. ``speedup`` is of tokens/s.

    ``ttft_ratio`` is the time to first token off : on. ``identical`` of ``answers`` had the same text both ways.
    """

    place: Place
    speedup: float
    ttft_ratio: float
    answers: int
    identical: int


class LaneComparison(msgspec.Struct, frozen=True, kw_only=True):
    """Time to first token beside the same background: through the throughput lane, and through the interactive one."""

    model: str
    prompts: PromptClass
    background: int
    throughput_ttft_ms: float
    interactive_ttft_ms: float
    ttft_improvement: float


def section(reports: Sequence[SpeculativeReport]) -> SpeculativeSection:
    """Add up what answers say; ``unavailable`` counts are those that the engine did not give."""
    counters = sum((_counters(report) for report in reports), SpecCounters())
    return SpeculativeSection(
        active=bool(reports) and all(report.active for report in reports),
        reasons=dict(Counter(report.reason for report in reports)),
        telemetry=_telemetry(reports),
        rounds=counters.rounds,
        proposed=counters.proposed,
        accepted=counters.accepted,
        rejected=counters.rejected,
        ignored=counters.ignored,
        acceptance_ratio=_rounded(counters.acceptance_ratio),
        mean_accepted_tokens=_rounded(counters.mean_accepted),
        proposers=proposers_of(counters),
    )


def _counters(report: SpeculativeReport) -> SpecCounters:
    """The counts of one answer; none where it has none."""
    looked_up = (report.proposers or {}).get("prompt_lookup")
    return SpecCounters(
        rounds=report.rounds or 0,
        proposed=report.proposed or 0,
        accepted=report.accepted or 0,
        rejected=report.rejected or 0,
        ignored=report.ignored or 0,
        lookup_rounds=looked_up.rounds if looked_up is not None else 0,
        lookup_proposed=looked_up.proposed if looked_up is not None else 0,
        lookup_accepted=looked_up.accepted if looked_up is not None else 0,
        lookup_rejected=looked_up.rejected if looked_up is not None else 0,
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _telemetry(reports: Sequence[SpeculativeReport]) -> str:
    kinds = {report.telemetry for report in reports if report.active}
    return "native" if kinds == {"native"} else "unavailable"


def cells(samples: Iterable[Sample]) -> list[Cell]:
    """One for each place and way, in order of appearance."""
    grouped: dict[tuple[Place, Way], list[Sample]] = {}
    for sample in samples:
        grouped.setdefault((sample.place, sample.way), []).append(sample)
    return [_cell(place, way, group) for (place, way), group in grouped.items()]


def _cell(place: Place, way: Way, samples: Sequence[Sample]) -> Cell:
    ttfts_ms = [ttft_ms for sample in samples for ttft_ms in sample.ttfts_ms]
    return Cell(
        place=place,
        way=way,
        answers=sum(len(sample.texts) for sample in samples),
        tokens=sum(sample.tokens for sample in samples),
        tokens_per_s=round(median([sample.tokens_per_s for sample in samples]), 2),
        ttft_ms=round(median(ttfts_ms), 2),
        ttft_p95_ms=round(quantile(ttfts_ms, 0.95), 2),
        speculative=section([report for sample in samples for report in sample.speculative]),
    )


def comparisons(samples: Sequence[Sample]) -> list[Comparison]:
    """On against off, for each place without background."""
    alone = [sample for sample in samples if not sample.place.background]
    return [_compared(place, alone) for place in dict.fromkeys(sample.place for sample in alone)]


def _compared(place: Place, samples: Sequence[Sample]) -> Comparison:
    pairs = _pairs([sample for sample in samples if sample.place == place], lambda sample: sample.way, *WAYS)
    texts = [pair for on, off in pairs for pair in zip(on.texts, off.texts, strict=True)]
    return Comparison(
        place=place,
        speedup=round(_ratio(pairs, lambda on, off: on.tokens_per_s / off.tokens_per_s), 3),
        ttft_ratio=round(_ratio(pairs, lambda on, off: median(off.ttfts_ms) / median(on.ttfts_ms)), 3),
        answers=len(texts),
        identical=sum(one == other for one, other in texts),
    )


def lane_comparisons(samples: Sequence[Sample]) -> list[LaneComparison]:
    """The lanes beside each other, for each model and class that was asked beside a background."""
    busy = [sample for sample in samples if sample.place.background]
    keys = dict.fromkeys((one.place.model, one.place.prompts, one.place.background) for one in busy)
    return [_lanes(*key, [one for one in busy if key == _key(one)]) for key in keys]


def _key(sample: Sample) -> tuple[str, PromptClass, int]:
    return sample.place.model, sample.place.prompts, sample.place.background


def _lanes(model: str, prompts: PromptClass, background: int, samples: Sequence[Sample]) -> LaneComparison:
    pairs = _pairs(samples, lambda sample: sample.place.lane, "interactive", "throughput")
    return LaneComparison(
        model=model,
        prompts=prompts,
        background=background,
        throughput_ttft_ms=round(median([median(batched.ttfts_ms) for _, batched in pairs]), 2),
        interactive_ttft_ms=round(median([median(alone.ttfts_ms) for alone, _ in pairs]), 2),
        ttft_improvement=round(
            _ratio(pairs, lambda alone, batched: median(batched.ttfts_ms) / median(alone.ttfts_ms)), 3
        ),
    )


def _pairs(
    samples: Sequence[Sample], side: Callable[[Sample], str], one: str, other: str
) -> list[tuple[Sample, Sample]]:
    """Samples of the same prompts in the same round, on both sides."""
    found = {(sample.round, sample.number, side(sample)): sample for sample in samples}
    return [
        (sample, found[number, which, other])
        for (number, which, where), sample in found.items()
        if where == one and (number, which, other) in found
    ]


def _ratio(pairs: Sequence[tuple[Sample, Sample]], ratio: Callable[[Sample, Sample], float]) -> float:
    """The geometric mean over prompts of the median over rounds; nan of nothing."""
    by_prompt: dict[int, list[float]] = {}
    for one, other in pairs:
        by_prompt.setdefault(one.number, []).append(ratio(one, other))
    return geometric_mean([median(ratios) for ratios in by_prompt.values()])


def geometric_mean(values: Sequence[float]) -> float:
    """nan of nothing."""
    return math.exp(sum(map(math.log, values)) / len(values)) if values else math.nan
