"""Requests that have not ended, as whoever looks sees them."""

from __future__ import annotations

from typing import Literal

import msgspec

from lanes.wire import Lane, SpecCounters
from opta_router.telemetry import RequestTrace


class InFlight(msgspec.Struct, frozen=True, kw_only=True):
    """A request that waits for a slot, or runs. ``lane`` is where it waits, or is now.

    ``trace`` is the one that it is told to: whoever listens there knows the rest of it.
    """

    trace: RequestTrace
    model: str
    lane: Lane
    stage: Literal["queued", "running"]
    emitted_tokens: int = 0
    speculative: SpecCounters | None = None
