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

    Two flows have all of this also if the next is chosen while a service is under way (:meth:`expect`); of more of them
    one may then be served again and again, to make up for a service that was expected to be longer than it was.
    """

    def __init__(self, weights: Mapping[K, float]) -> None:
        self._weights: dict[K, float] = {}
        self._tags: dict[K, float] = {}
        self._expected: dict[K, float] = {}
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
        self._expected.setdefault(key, 0.0)

    def forget(self, key: K) -> None:
        """Drop a flow that will not come back."""
        self._weights.pop(key, None)
        self._tags.pop(key, None)
        self._expected.pop(key, None)
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
        key = min(backlogged, key=lambda k: (self._tags[k] + self._expected[k] / self._weights[k], -self._weights[k]))
        self._virtual_time = max(self._virtual_time, self._tags[key])
        return key

    def expect(self, key: K, cost: float) -> None:
        """A service has begun that should cost so much: it counts in the choice of the next, until it is charged.

        It does not move the virtual time. If it did, whoever came after a service that was expected to be long would
        wait until ``key`` had made up for what it was not given.
        """
        self._expected[key] += cost

    def charge(self, key: K, cost: float, expected: float = 0.0) -> None:
        """Book a service that ``key`` was given; ``cost`` in units of the resource.

        ``expected`` is what was said of it, and does not count any more.
        """
        self._tags[key] += cost / self._weights[key]
        self._expected[key] -= expected

    def tag(self, key: K) -> float:
        """The flow's virtual start time, for display and tests."""
        return self._tags[key]
