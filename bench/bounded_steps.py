"""Whether the router's throughput lane kept ``max_step_ms``, as ``GET /admin/lanes`` counts it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any, Final

import httpx
import msgspec

from bench.statistics import ratio
from policies.schema import ThroughputLane

DEFAULT_MS: Final = ThroughputLane().max_step_ms


class BoundedSteps(msgspec.Struct, frozen=True):
    """Steps beside the interactive lane in use, and those of them that took longer than they should."""

    steps: int
    late: int

    def since(self, before: BoundedSteps) -> BoundedSteps:
        """Those from ``before`` to now."""
        return BoundedSteps(self.steps - before.steps, self.late - before.late)

    def __str__(self) -> str:
        return f"{self.late} of {self.steps} ({ratio(self.late, max(self.steps, 1)):.1%})"


async def bounded_steps(client: httpx.AsyncClient) -> BoundedSteps:
    """Of the throughput lane since the router's start, as of a second ago."""
    return of_lane((await client.get("/admin/lanes")).raise_for_status().json()["throughput"])


def of_lane(view: Mapping[str, Any]) -> BoundedSteps:
    """Of one lane, as ``GET /admin/lanes`` shows it."""
    return BoundedSteps(view["bounded_steps"], view["late_steps"])


def add_max_step_ms(parser: argparse.ArgumentParser) -> None:
    """The option."""
    parser.add_argument(
        "--max-step-ms", type=float, default=DEFAULT_MS, help=f"of the throughput lane; {DEFAULT_MS:g}, the default's"
    )
