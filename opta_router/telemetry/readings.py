"""What the metrics are read from: plain numbers of the router's parts, as they are now."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import msgspec

from lanes.wire import Lane, PromptCacheStats


class LaneReading(msgspec.Struct, frozen=True, kw_only=True):
    """One lane now; from ``spilled`` on, since the router's start.

    ``rejected`` are by code. Of the ``bounded_steps``, beside another lane in use, ``late_steps`` took too long.
    """

    weight: float
    active: int
    queued: int
    spilled: int
    rejected: Mapping[str, int]
    device_s: float
    bounded_steps: int
    late_steps: int


class EngineReading(msgspec.Struct, frozen=True, kw_only=True):
    """The engine now, and since the router's start: hosts that were lost, requests that another host went on with.

    ``memory_bytes`` is what the host uses of the device, as of a second ago; None without a host. ``model_bytes`` is
    what each resident model takes, weights and room for caches.
    """

    restarts: int
    resumed: int
    ready: bool = False
    memory_bytes: int | None = None
    model_bytes: Mapping[str, int] = {}


class ConfigurationReading(msgspec.Struct, frozen=True, kw_only=True):
    """Reloads since the router's start."""

    applied: int
    refused: int


ReadLanes: TypeAlias = Callable[[], Mapping[Lane, LaneReading]]
ReadEngine: TypeAlias = Callable[[], EngineReading]
ReadPromptCaches: TypeAlias = Callable[[], Mapping[str, PromptCacheStats]]
"""By model."""
ReadConfiguration: TypeAlias = Callable[[], ConfigurationReading]
ReadDropped: TypeAlias = Callable[[], Mapping[str, int]]
"""What was lost, by signal."""
