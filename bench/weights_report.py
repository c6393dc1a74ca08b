"""What ``bench weights`` has found, as tables and held against what is promised."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from statistics import mean

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
    time over the time that passed. Of several cycles it and the rates are the means.
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
    """The whole measurement: tokens/s of each lane whenever it was alone, and what both did together."""

    interactive_alone: tuple[float, ...]
    throughput_alone: tuple[float, ...]
    splits: tuple[Split, ...]
    ttft_idle_ms: tuple[float, ...]
    ttft_busy_ms: tuple[float, ...]

    def solo(self) -> Rates:
        """The mean of a lane by itself."""
        return Rates(mean(self.interactive_alone), mean(self.throughput_alone))

    def normalised(self, split: Split) -> Rates:
        """Each lane's throughput over its own by itself."""
        solo = self.solo()
        return Rates(split.rates.interactive / solo.interactive, split.rates.throughput / solo.throughput)


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
    for split in found.splits:
        normalised = found.normalised(split)
        total = normalised.interactive + normalised.throughput
        promises += [
            at_most(f"interactive share of device time, relative error, {_ratio(split)}", split.error, 0.05),
            at_least(f"sum of normalised throughputs, {_ratio(split)}", total, sum_bound),
        ]
    busy_to_idle = median(found.ttft_busy_ms) / median(found.ttft_idle_ms)
    return [*promises, at_most("TTFT busy : idle, a person beside the throughput lane", busy_to_idle, 1.5)]


def table(found: Found) -> str:
    """Markdown: a row for each pair of weights, and one of the means of each lane alone."""
    columns = (
        *("weights", "interactive share: configured", "measured, worst window", "relative error"),
        *("throughput share, off by", "device used", "interactive tokens/s", "throughput tokens/s", "sum"),
    )
    solo = found.solo()
    rows = [_cells(split, found.normalised(split)) for split in found.splits]
    alone = ("each lane alone", *[""] * 5, f"{solo.interactive:.1f}", f"{solo.throughput:.1f}", "")
    return markdown(columns, [*rows, alone])


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
