"""The bounds of ``bench gate``, and the verdict on each pair of a matrix. Pure, but for reading the file."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta

from bench.matrix_figures import Cell, Comparison, geometric_mean
from bench.matrix_plan import Subject
from bench.matrix_result import Matrix
from bench.reporting import Bar, at_least
from bench.statistics import median
from policies.validation import decode
from policies.yaml_source import YamlSource

DRAFT: Final = "draft_model"
GATES_FILE: Final = Path(__file__).with_name("gates.yaml")

AtLeast: TypeAlias = Annotated[float, Meta(ge=0)]


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A mapping of the file. Unknown keys are errors."""


class InteractiveGates(_Section, frozen=True, kw_only=True):
    """Least values for one request at a time in the interactive lane."""

    speedup: AtLeast
    speedup_of_each_class: AtLeast
    ttft_kept: AtLeast
    ttft_improvement: AtLeast


class ThroughputGates(_Section, frozen=True, kw_only=True):
    """Least values for the largest number of requests at once in the throughput lane."""

    tokens_per_s_kept: AtLeast


class Bounds(_Section, frozen=True, kw_only=True):
    """For one profile of a matrix."""

    interactive: InteractiveGates
    throughput: ThroughputGates


class PairFloor(_Section, frozen=True, kw_only=True):
    """A pair's own least acceptance ratio."""

    target: str
    draft: str
    floor: Annotated[float, Meta(ge=0, le=1)]


class AcceptanceGates(_Section, frozen=True, kw_only=True):
    """Least acceptance ratios: any pair's, and those of pairs that are known."""

    floor: Annotated[float, Meta(ge=0, le=1)]
    pairs: tuple[PairFloor, ...] = ()

    def of(self, subject: Subject) -> float:
        """The floor of one pair."""
        own = (one.floor for one in self.pairs if (one.target, one.draft) == (subject.target, subject.draft))
        return next(own, self.floor)


class Gates(_Section, frozen=True, kw_only=True):
    """The whole file."""

    full: Bounds
    short: Bounds
    acceptance: AcceptanceGates


class Scorecard(msgspec.Struct, frozen=True, kw_only=True):
    """One pair's verdict. ``reasons``: why speculation was not active, where it was not, of how many answers."""

    subject: Subject
    verdict: Literal["READY", "NOT READY"]
    bars: tuple[Bar, ...]
    reasons: dict[str, int]

    @property
    def failed(self) -> tuple[Bar, ...]:
        """What is missing to READY."""
        return tuple(bar for bar in self.bars if not bar.kept)

    @property
    def figures(self) -> dict[str, float]:
        """What was measured, by name, as an approval keeps it."""
        return {bar.promise: bar.measured for bar in self.bars if math.isfinite(bar.measured)}


def read_gates(file: Path = GATES_FILE) -> Gates:
    """The bounds in a file. Raises ConfigError, which names the key path."""
    source = YamlSource(file)
    return decode(source.data, Gates, source)


def judge(matrix: Matrix, gates: Gates) -> list[Scorecard]:
    """A scorecard for each pair; a model without a draft is none. What was not measured is not kept."""
    bounds = gates.short if matrix.plan.profile == "short" else gates.full
    return [
        _judged(subject, matrix, bounds, gates.acceptance.of(subject))
        for subject in matrix.subjects
        if subject.draft is not None
    ]


def _judged(subject: Subject, matrix: Matrix, bounds: Bounds, floor: float) -> Scorecard:
    speculating = _speculating(subject, matrix)
    bars = (
        at_least("share of answers that speculated", _active_share(speculating), 1.0),
        at_least("acceptance ratio of the draft", _acceptance(speculating), floor),
        *_interactive(subject, matrix, bounds.interactive),
        at_least(
            "throughput tokens/s kept",
            geometric_mean([one.speedup for one in _of_throughput(subject, matrix)]),
            bounds.throughput.tokens_per_s_kept,
        ),
    )
    idle = Counter[str]()
    for cell in speculating:
        if not cell.speculative.active:
            idle.update(cell.speculative.reasons)
    verdict: Literal["READY", "NOT READY"] = "READY" if all(bar.kept for bar in bars) else "NOT READY"
    return Scorecard(subject=subject, verdict=verdict, bars=bars, reasons=dict(idle))


def _interactive(subject: Subject, matrix: Matrix, gates: InteractiveGates) -> Iterator[Bar]:
    alone = _alone(subject, matrix)
    speedups = [one.speedup for one in alone]
    improvements = [one.ttft_improvement for one in matrix.lane_comparisons if one.model == subject.model]
    yield at_least("interactive speedup", geometric_mean(speedups), gates.speedup)
    for one in alone:
        yield at_least(f"interactive speedup, {one.place.prompts}", one.speedup, gates.speedup_of_each_class)
    yield at_least("interactive TTFT kept", geometric_mean([one.ttft_ratio for one in alone]), gates.ttft_kept)
    yield at_least(
        "interactive TTFT improvement over the throughput lane", median(improvements), gates.ttft_improvement
    )


def _alone(subject: Subject, matrix: Matrix) -> list[Comparison]:
    """One request at a time in the interactive lane, a comparison for each class."""
    return [
        one
        for one in matrix.comparisons
        if (one.place.model, one.place.lane, one.place.concurrency) == (subject.model, "interactive", 1)
    ]


def _of_throughput(subject: Subject, matrix: Matrix) -> list[Comparison]:
    """The most requests at once in the throughput lane, a comparison for each class."""
    found = [one for one in matrix.comparisons if (one.place.model, one.place.lane) == (subject.model, "throughput")]
    most = max((one.place.concurrency for one in found), default=0)
    return [one for one in found if one.place.concurrency == most]


def _speculating(subject: Subject, matrix: Matrix) -> list[Cell]:
    """Where the pair should have speculated."""
    return [
        cell
        for cell in matrix.cells
        if (cell.place.model, cell.place.lane, cell.way) == (subject.model, "interactive", "on")
    ]


def _active_share(cells: Sequence[Cell]) -> float:
    answers = sum(cell.answers for cell in cells)
    active = sum(cell.answers for cell in cells if cell.speculative.active and cell.speculative.telemetry == "native")
    return active / answers if answers else math.nan


def _acceptance(cells: Sequence[Cell]) -> float:
    """The draft model's own: what prompt lookup proposes says nothing of a pair."""
    drafted = [cell.speculative.proposers[DRAFT] for cell in cells if DRAFT in cell.speculative.proposers]
    accepted = sum(part.accepted for part in drafted)
    compared = accepted + sum(part.rejected for part in drafted)
    return accepted / compared if compared else math.nan
