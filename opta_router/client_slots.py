"""What each client holds in both lanes together, and how quickly those at their own bound give slots back."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from opta_router.drain_rate import DrainRate
from opta_router.tickets import Ask

MAX_IDLE_CLIENTS: Final = 256


class _Slots:
    """One client's. ``bound`` is the one that its latest request came with; None: the lanes' bounds alone count."""

    def __init__(self, bound: int | None) -> None:
        self.active = 0
        self.bound = bound
        self.rate = DrainRate()

    def settle(self, now_s: float) -> None:
        self.rate.taken(min(self.active / self.bound, 1.0) if self.bound is not None else 0.0, now_s)


class ClientSlots:
    """Every client's slots. What was measured of a client outlives its last request, if not for ever."""

    def __init__(self) -> None:
        self._busy: dict[str, _Slots] = {}
        self._idle: OrderedDict[str, _Slots] = OrderedDict()

    def has_room(self, ask: Ask) -> bool:
        """Whether the client's own bound lets the request run."""
        return ask.client_max_active is None or self.active(ask.client) < ask.client_max_active

    def active(self, client: str) -> int:
        """How many slots the client holds."""
        return self._busy[client].active if client in self._busy else 0

    def total(self) -> int:
        """How many slots all clients hold."""
        return sum(slots.active for slots in self._busy.values())

    def wait_s(self, client: str, turns: float) -> float | None:
        """When a client at its bound will have given back ``turns`` slots; None before it has given back any."""
        slots = self._busy.get(client)
        return slots.rate.wait_s(turns) if slots is not None else None

    def seen(self, ask: Ask, now_s: float) -> None:
        """A request came, maybe with another bound than the client had before."""
        slots = self._busy.get(ask.client) or self._idle.get(ask.client)
        if slots is None or slots.bound == ask.client_max_active:
            return
        if slots.bound is not None and ask.client_max_active is not None:
            slots.rate.slots_changed(slots.bound, ask.client_max_active)
        slots.bound = ask.client_max_active
        slots.settle(now_s)

    def take(self, ask: Ask, now_s: float) -> None:
        """The client has one more slot."""
        if ask.client not in self._busy:
            known = ask.client in self._idle
            self._busy[ask.client] = self._idle.pop(ask.client) if known else _Slots(ask.client_max_active)
        slots = self._busy[ask.client]
        slots.active += 1
        slots.settle(now_s)

    def used(self, client: str, now_s: float) -> None:
        """A slot is about to be given back by a request that has run in it."""
        slots = self._busy[client]
        if slots.bound is not None:
            slots.rate.freed(now_s)

    def give_back(self, client: str) -> None:
        """The client has one slot less, unless it takes it again before :meth:`settle`."""
        self._busy[client].active -= 1

    def settle(self, client: str, now_s: float) -> None:
        """Whoever waited for the slot that the client gave back has it now."""
        slots = self._busy[client]
        slots.settle(now_s)
        if slots.active:
            return
        del self._busy[client]
        if slots.bound is not None:
            self._idle[client] = slots
            if len(self._idle) > MAX_IDLE_CLIENTS:
                self._idle.popitem(last=False)

    def check_integrity(self) -> None:
        """Raises AssertionError if a client that holds nothing is counted."""
        assert all(slots.active > 0 for slots in self._busy.values()), self._busy
        assert self._busy.keys().isdisjoint(self._idle), self._busy
