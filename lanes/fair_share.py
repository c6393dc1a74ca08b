"""Weighted fair sharing of one resource between flows that come and go.

Start-time fair queueing: P. Goyal, H. M. Vin, H. Cheng, "Start-time Fair Queueing: A Scheduling Algorithm for
Integrated Services Packet Switching Networks", SIGCOMM 1996. The device arbiter shares device seconds between
lanes with it; admission shares a lane's slots between clients.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Mapping
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class FairShare(Generic[K]):
    """Says which flow is served next, and remembers what each was given.

    A flow's *tag* is its virtual start time: the service it had, divided by its weight. The backlogged flow with the
    smallest tag is served next, and then charged with what the service really cost, which need not be known before.

    Guarantees, for flows that stay backlogged over an interval, with costs of at most ``c`` each:

    - their service divided by their weights differs by at most ``c_f / w_f + c_g / w_g`` (Theorem 1 of the source);
    - work-conserving: a backlogged flow is always served;
    - a flow that was idle banks no credit and owes no debt beyond its last service: it re-enters at the current
      virtual time, so a flow that wakes waits for at most one service of each other flow.
    """

    def __init__(self, weights: Mapping[K, float]) -> None:
        self._weights: dict[K, float] = {}
        self._tags: dict[K, float] = {}
        self._backlogged: frozenset[K] = frozenset()
        self._virtual_time = 0.0
        for key, weight in weights.items():
            self.set_weight(key, weight)

    def set_weight(self, key: K, weight: float) -> None:
        """Add a flow, or give it another weight from the next service on.

        Raises:
            ValueError: ``weight`` is not a positive finite number.
        """
        if not (math.isfinite(weight) and weight > 0):
            raise ValueError(f"weight of {key!r} is {weight}; it must be a positive finite number")
        self._weights[key] = weight
        self._tags.setdefault(key, self._virtual_time)

    def forget(self, key: K) -> None:
        """Drop a flow that will not come back."""
        self._weights.pop(key, None)
        self._tags.pop(key, None)
        self._backlogged -= {key}

    def select(self, backlogged: Collection[K]) -> K | None:
        """The flow to serve next, or None if none is backlogged.

        Ties go to the heavier flow, then to the one named first in ``backlogged``.
        """
        for key in backlogged:
            if key not in self._backlogged:
                self._tags[key] = max(self._tags[key], self._virtual_time)
        self._backlogged = frozenset(backlogged)
        if not backlogged:
            return None
        key = min(backlogged, key=lambda k: (self._tags[k], -self._weights[k]))
        self._virtual_time = max(self._virtual_time, self._tags[key])
        return key

    def charge(self, key: K, cost: float) -> None:
        """Book a service that ``key`` was given; ``cost`` in units of the resource.

        What an estimate was too high by is booked with a negative cost.
        """
        self._tags[key] += cost / self._weights[key]

    def tag(self, key: K) -> float:
        """The flow's virtual start time, for display and tests."""
        return self._tags[key]
