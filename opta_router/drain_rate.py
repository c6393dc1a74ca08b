"""How quickly slots that are all taken come free, as measured, and what a client is told from that."""

from __future__ import annotations

import math
from typing import Final

MIN_RETRY_S: Final = 1
MAX_RETRY_S: Final = 60
UNMEASURED_RETRY_S: Final = 2
"""What a rejected client is told before any request that it would wait for has ended."""


class DrainRate:
    """How quickly slots are given back while all are taken: slots per second, over about the last half minute of that.

    A lane's slots are one such set; those that a client may hold are another. While only a share of them is taken, time
    counts by that share: so many slots are then given back, too, and idle hours do not look like slow work.
    """

    _MEMORY_S: Final = 30.0

    def __init__(self) -> None:
        self._slots = 0.0
        self._seconds = 0.0
        self._share = 0.0
        self._since_s = 0.0
        self._uncounted_s = 0.0

    def taken(self, share: float, now_s: float) -> None:
        """From now on this share of the slots is taken, 0 to 1."""
        self._uncounted_s += self._share * max(now_s - self._since_s, 0.0)
        self._share, self._since_s = share, now_s

    def freed(self, now_s: float) -> None:
        """A slot comes back from a request that has run in it."""
        self.taken(self._share, now_s)
        decay = math.exp(-self._uncounted_s / self._MEMORY_S)
        self._slots = self._slots * decay + 1
        self._seconds = self._seconds * decay + self._uncounted_s
        self._uncounted_s = 0.0

    def slots_changed(self, before: int, now: int) -> None:
        """With more slots each comes free as often as before, and so one of them does more often."""
        self._seconds *= before / now

    def wait_s(self, turns: float) -> float | None:
        """When ``turns`` slots will have come free; None before any has."""
        return turns * self._seconds / self._slots if self._slots else None


def retry_after_s(wait_s: float | None) -> int:
    """A wait in whole seconds that a client will accept; None: nothing was measured."""
    return UNMEASURED_RETRY_S if wait_s is None else max(MIN_RETRY_S, min(MAX_RETRY_S, math.ceil(wait_s)))
