"""What ``bench weights`` has found, as tables and held against what is promised."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from statistics import median

import msgspec

from bench.bounded_steps import BoundedSteps
from bench.reporting import Bar, at_least, at_most, markdown
from bench.statistics import quantile


class Reading(msgspec.Struct, frozen=True):
    """Device time of both lanes since the start, and when it was known, all in seconds; the throughput lane's steps."""

    at_s: float
    interactive_s: float
    throughput_s: float
    bounded_steps: BoundedSteps


class Rates(msgspec.Struct, frozen=True):
    """Tokens/s of both lanes."""

    interactive: float
    throughput: float


class Split(msgspec.Struct, frozen=True, kw_only=True):
    """Both lanes with one pair of weights, interactive first.

    ``shares`` are the interactive lane's of the device time that was used, one for each window; ``device_used`` is that
    time over the time that passed.
    """

    weights: tuple[float, float]
    shares: tuple[float, ...]
    device_used: float
    rates: Rates
    bounded_steps: BoundedSteps

    @property
    def configured(self) -> float:
        """The interactive lane's share as the weights say."""
        return self.weights[0] / sum(self.weights)

    @property
    def worst_share(self) -> float:
        """The share of the window that is farthest from the configured one."""
        return max(self.shares, key=lambda share: abs(share - self.configured))

    @property
    def error(self) -> float:
        """How far the worst window is from the configured share, relative to it."""
        return abs(self.worst_share / self.configured - 1)


class Cycle(msgspec.Struct, frozen=True, kw_only=True):
    """Each lane alone, both with each pair of weights, and each alone again: tokens/s."""

    interactive_alone: tuple[float, float]
    throughput_alone: tuple[float, float]
    splits: tuple[Split, ...]


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """The whole measurement. Each cycle has splits of the same weights, in the same order."""

    cycles: tuple[Cycle, ...]
    ttft_idle_ms: tuple[float, ...]
    ttft_busy_ms: tuple[float, ...]

    @property
    def interactive_alone(self) -> list[float]:
        """Every time, in order; the last of a cycle is the next one's first."""
        return [self.cycles[0].interactive_alone[0], *(cycle.interactive_alone[1] for cycle in self.cycles)]

    @property
    def throughput_alone(self) -> list[float]:
        """Every time, in order."""
        return [rate for cycle in self.cycles for rate in cycle.throughput_alone]

    @property
    def alone(self) -> Rates:
        """What each lane has by itself: the median."""
        return Rates(median(self.interactive_alone), median(self.throughput_alone))

    @property
    def summaries(self) -> list[Summary]:
        """One for each pair of weights."""
        return [Summary(splits, self.alone) for splits in zip(*(cycle.splits for cycle in self.cycles), strict=True)]


class Summary(msgspec.Struct, frozen=True):
    """One pair of weights, over all cycles, and what each lane has alone.

    Medians: a machine that is shared with others is slower at times, by up to half and for seconds.
    """

    splits: tuple[Split, ...]
    alone: Rates

    @property
    def weights(self) -> str:
        """As a ratio."""
        interactive, throughput = self.splits[0].weights
        return f"{interactive:g}:{throughput:g}"

    @property
    def worst(self) -> Split:
        """Of the cycle whose share was farthest from the configured one."""
        return max(self.splits, key=lambda split: split.error)

    @property
    def rates(self) -> Rates:
        """Of both lanes together."""
        rates = [split.rates for split in self.splits]
        return Rates(median(rate.interactive for rate in rates), median(rate.throughput for rate in rates))

    @property
    def bounded_steps(self) -> BoundedSteps:
        """Of all cycles."""
        found = [split.bounded_steps for split in self.splits]
        return BoundedSteps(sum(one.steps for one in found), sum(one.late for one in found))

    @property
    def sums(self) -> list[float]:
        """Of both throughputs, each over its own alone, in order of the cycles."""
        return [sum(self.normalised(split.rates)) for split in self.splits]

    def normalised(self, rates: Rates) -> tuple[float, float]:
        """Each lane's throughput over its own alone, interactive first."""
        return rates.interactive / self.alone.interactive, rates.throughput / self.alone.throughput


def shares(readings: Sequence[Reading]) -> tuple[float, ...]:
    """The interactive lane's share of the device time between each reading and the next."""
    found = []
    for before, after in pairwise(readings):
        interactive_s = after.interactive_s - before.interactive_s
        throughput_s = after.throughput_s - before.throughput_s
        found.append(interactive_s / (interactive_s + throughput_s))
    return tuple(found)


def device_used(readings: Sequence[Reading]) -> float:
    """Device time of both lanes over the time that passed, from the first reading to the last."""
    first, last = readings[0], readings[-1]
    used_s = last.interactive_s + last.throughput_s - first.interactive_s - first.throughput_s
    return used_s / (last.at_s - first.at_s)


def bars(found: Found, sum_bound: float) -> list[Bar]:
    """What weights promise, held against one run."""
    promises: list[Bar] = []
    for summary in found.summaries:
        promises += [
            at_most(f"interactive share of device time, relative error, {summary.weights}", summary.worst.error, 0.05),
            at_least(f"sum of normalised throughputs, {summary.weights}", median(summary.sums), sum_bound),
        ]
    busy_to_idle = median(found.ttft_busy_ms) / median(found.ttft_idle_ms)
    return [*promises, at_most("TTFT busy : idle, a person beside the throughput lane", busy_to_idle, 1.5)]


def table(found: Found) -> str:
    """Markdown: a row for each pair of weights, and one of each lane alone; of several cycles the medians."""
    columns = (
        *("weights", "interactive share: configured", "measured, worst window", "relative error"),
        *("throughput share, off by", "device used", "interactive tokens/s", "throughput tokens/s", "sum", "sums"),
        "steps longer than `max_step_ms`",
    )
    solo = found.alone
    alone = ("each lane alone", *[""] * 5, f"{solo.interactive:.1f}", f"{solo.throughput:.1f}", "", "", "")
    return markdown(columns, [*map(_cells, found.summaries), alone])


def alone_line(found: Found) -> str:
    """How steady the machine was: each lane alone, every time."""
    interactive = ", ".join(f"{rate:.1f}" for rate in found.interactive_alone)
    throughput = ", ".join(f"{rate:.1f}" for rate in found.throughput_alone)
    return f"Alone, in order: interactive {interactive}; throughput {throughput} tokens/s"


def ttft_line(found: Found) -> str:
    """The person's times to first token in a line."""
    idle, busy = found.ttft_idle_ms, found.ttft_busy_ms
    return (
        f"Person: TTFT idle {median(idle):.1f} ms (p95 {quantile(idle, 0.95):.1f}, {len(idle)} questions), "
        f"busy {median(busy):.1f} ms (p95 {quantile(busy, 0.95):.1f}, {len(busy)} questions)"
    )


def _cells(summary: Summary) -> tuple[str, ...]:
    worst, sums, rates = summary.worst, summary.sums, summary.rates
    interactive, throughput = summary.normalised(rates)
    return (
        summary.weights,
        f"{worst.configured:.2%}",
        f"{worst.worst_share:.2%}",
        f"{worst.error:.1%}",
        f"{abs(worst.worst_share - worst.configured):.2%}",
        f"{median([split.device_used for split in summary.splits]):.0%}",
        f"{rates.interactive:.1f} ({interactive:.3f})",
        f"{rates.throughput:.1f} ({throughput:.3f})",
        f"{median(sums):.3f}",
        f"{min(sums):.2f} to {max(sums):.2f}",
        str(summary.bounded_steps),
    )
