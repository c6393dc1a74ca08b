"""What ``bench weights`` has found, as tables and held against what is promised."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import msgspec

from bench.reporting import Bar, at_least, at_most, markdown
from bench.statistics import median, quantile


class Reading(msgspec.Struct, frozen=True):
    """Device time of both lanes since the start, and when it was known, all in seconds."""

    at_s: float
    interactive_s: float
    throughput_s: float


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


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """The whole measurement. ``alone``: each lane by itself, before each split and after the last."""

    alone: tuple[Rates, ...]
    splits: tuple[Split, ...]
    ttft_idle_ms: tuple[float, ...]
    ttft_busy_ms: tuple[float, ...]

    def normalised(self, number: int) -> Rates:
        """Each lane's throughput in a split over its own by itself: the mean of just before and just after."""
        before, after, rates = self.alone[number], self.alone[number + 1], self.splits[number].rates
        return Rates(
            2 * rates.interactive / (before.interactive + after.interactive),
            2 * rates.throughput / (before.throughput + after.throughput),
        )


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
    for number, split in enumerate(found.splits):
        normalised = found.normalised(number)
        total = normalised.interactive + normalised.throughput
        promises += [
            at_most(f"interactive share of device time, relative error, {_ratio(split)}", split.error, 0.05),
            at_least(f"sum of normalised throughputs, {_ratio(split)}", total, sum_bound),
        ]
    busy_to_idle = median(found.ttft_busy_ms) / median(found.ttft_idle_ms)
    return [*promises, at_most("TTFT busy : idle, a person beside the throughput lane", busy_to_idle, 1.5)]


def table(found: Found) -> str:
    """Markdown: a row for each pair of weights, between those of the times that the lanes were alone."""
    columns = (
        *("weights", "interactive share: configured", "measured, worst window", "relative error"),
        *("throughput share, off by", "device used", "interactive tokens/s", "throughput tokens/s", "sum"),
    )
    alone = [
        ("each lane alone", *[""] * 5, f"{rates.interactive:.1f}", f"{rates.throughput:.1f}", "")
        for rates in found.alone
    ]
    splits = [_cells(split, found.normalised(number)) for number, split in enumerate(found.splits)]
    between = [row for pair in zip(alone, splits, strict=False) for row in pair]
    return markdown(columns, [*between, alone[-1]])


def ttft_line(found: Found) -> str:
    """The person's times to first token in a line."""
    idle, busy = found.ttft_idle_ms, found.ttft_busy_ms
    return (
        f"Person: TTFT idle {median(idle):.1f} ms (p95 {quantile(idle, 0.95):.1f}, {len(idle)} questions), "
        f"busy {median(busy):.1f} ms (p95 {quantile(busy, 0.95):.1f}, {len(busy)} questions)"
    )


def _cells(split: Split, normalised: Rates) -> tuple[str, ...]:
    return (
        _ratio(split),
        f"{split.configured:.2%}",
        f"{split.worst_share:.2%}",
        f"{split.error:.1%}",
        f"{abs(split.worst_share - split.configured):.2%}",
        f"{split.device_used:.0%}",
        f"{split.rates.interactive:.1f} ({normalised.interactive:.3f})",
        f"{split.rates.throughput:.1f} ({normalised.throughput:.3f})",
        f"{normalised.interactive + normalised.throughput:.3f}",
    )


def _ratio(split: Split) -> str:
    return f"{split.weights[0]:g}:{split.weights[1]:g}"
