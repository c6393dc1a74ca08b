"""Numbers from measurements."""

from __future__ import annotations

import math
from collections.abc import Sequence


def quantile(values: Sequence[float], q: float) -> float:
    """The smallest value that at least a share ``q`` of ``values`` does not exceed; nan of nothing."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(q * len(values)) - 1)]


def median(values: Sequence[float]) -> float:
    """The middle value; nan of nothing."""
    return quantile(values, 0.5)


def ratio(part: float, whole: float) -> float:
    """``part / whole``; without end where ``whole`` is 0: a server that delivered nothing in its time is outdone."""
    return part / whole if whole else math.inf
