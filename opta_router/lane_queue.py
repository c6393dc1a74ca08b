"""One lane's slots, and who waits for them: fair shares for clients, and for the sub-clients of each."""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from lanes.fair_share import FairShare
from lanes.wire import Lane
from opta_router.tickets import Ask, Ticket

MAX_IDLE_FLOWS: Final = 256
MIN_RETRY_S: Final = 1
MAX_RETRY_S: Final = 60
UNMEASURED_RETRY_S: Final = 2
"""What a rejected client is told before any request of the lane has ended."""


class LaneLimits(msgspec.Struct, frozen=True):
    """One lane's bounds. ``spill`` names the lane that takes what a full queue cannot."""

    max_active: int
    max_queue: int
    queue_timeout_s: float
    spill: Lane | None = None


class LaneStats(msgspec.Struct, frozen=True, kw_only=True):
    """One lane now, and since the start."""

    active: int
    queued: int
    max_active: int
    max_queue: int
    granted: int
    spilled: int
    demoted: int
    rejected: Mapping[str, int]


class DrainRate:
    """How quickly a busy lane gives slots back: slots per second over about the last half minute of being full."""

    _MEMORY_S: Final = 30.0

    def __init__(self) -> None:
        self._slots = 0.0
        self._seconds = 0.0
        self._full_since_s: float | None = None

    def full(self, now_s: float) -> None:
        """All slots are taken."""
        if self._full_since_s is None:
            self._full_since_s = now_s

    def not_full(self) -> None:
        """A slot is free."""
        self._full_since_s = None

    def freed(self, now_s: float) -> None:
        """A slot came back. Only time in which the lane was full counts, or idle hours would look like a slow lane."""
        if self._full_since_s is None:
            return
        elapsed_s = max(now_s - self._full_since_s, 0.0)
        decay = math.exp(-elapsed_s / self._MEMORY_S)
        self._slots = self._slots * decay + 1
        self._seconds = self._seconds * decay + elapsed_s
        self._full_since_s = now_s

    def slots_changed(self, before: int, now: int) -> None:
        """With more slots each comes free as often as before, and so one of them does more often."""
        self._seconds *= before / now

    def wait_s(self, turns: float) -> float | None:
        """When ``turns`` slots will have come free; None before any has."""
        return turns * self._seconds / self._slots if self._slots else None

    def retry_after_s(self, waiting: int) -> int:
        """The same in whole seconds that a client will accept."""
        wait_s = self.wait_s(waiting)
        return UNMEASURED_RETRY_S if wait_s is None else max(MIN_RETRY_S, min(MAX_RETRY_S, math.ceil(wait_s)))


class _Flows:
    """A fair share over keys that come and go: forgets the longest idle ones, so that memory is bounded."""

    def __init__(self) -> None:
        self._share: FairShare[str] = FairShare({})
        self._idle: OrderedDict[str, None] = OrderedDict()

    def wake(self, key: str, weight: float = 1.0) -> None:
        self._share.set_weight(key, weight)
        self._idle.pop(key, None)

    def rest(self, key: str) -> None:
        self._idle[key] = None
        while len(self._idle) > MAX_IDLE_FLOWS:
            forgotten, _ = self._idle.popitem(last=False)
            self._share.forget(forgotten)

    def take(self, backlogged: list[str]) -> str:
        """The flow that is served now, charged with one service. ``backlogged`` is not empty."""
        key = self._share.select(backlogged)
        if key is None:
            raise ValueError("no flow is backlogged")
        self._share.charge(key, 1.0)
        return key


class ClientQueue:
    """One client's waiting tickets in one lane, oldest first in each of its sub-clients."""

    def __init__(self) -> None:
        self.flows = _Flows()
        self._waiting: dict[str, deque[Ticket]] = {}
        self.size = 0

    def push(self, ticket: Ticket) -> None:
        """Put a ticket at the end of its sub-client's."""
        sub_client = ticket.ask.sub_client
        if sub_client not in self._waiting:
            self._waiting[sub_client] = deque()
            self.flows.wake(sub_client)
        self._waiting[sub_client].append(ticket)
        self.size += 1

    def pop(self) -> Ticket:
        """Take out the ticket that is next."""
        ticket = self._waiting[self.flows.take(list(self._waiting))][0]
        self.remove(ticket)
        return ticket

    def remove(self, ticket: Ticket) -> None:
        """Take out a ticket, wherever it stands."""
        sub_client = ticket.ask.sub_client
        tickets = self._waiting[sub_client]
        tickets.remove(ticket)
        self.size -= 1
        if not tickets:
            del self._waiting[sub_client]
            self.flows.rest(sub_client)

    def last(self) -> Ticket:
        """The ticket that came last."""
        return max((tickets[-1] for tickets in self._waiting.values()), key=lambda ticket: ticket.offered_s)

    def __iter__(self) -> Iterator[Ticket]:
        for tickets in self._waiting.values():
            yield from tickets


class LaneQueue:
    """One lane: its slots, and who waits for them."""

    def __init__(self, lane: Lane, limits: LaneLimits) -> None:
        self.lane = lane
        self.limits = limits
        self.active = 0
        self.queued = 0
        self.clients: dict[str, ClientQueue] = {}
        self.flows = _Flows()
        self.rate = DrainRate()
        self.granted = 0
        self.spilled = 0
        self.demoted = 0
        self.movers: deque[Ticket] = deque()
        self.rejected: dict[str, int] = {}
        self._resting: OrderedDict[str, ClientQueue] = OrderedDict()

    def push(self, ticket: Ticket) -> None:
        """Let a ticket wait."""
        client = ticket.ask.client
        if client not in self.clients:
            self.clients[client] = self._resting.pop(client) if client in self._resting else ClientQueue()
        self.flows.wake(client, ticket.ask.client_weight)
        self.clients[client].push(ticket)
        self.queued += 1

    def pop(self, eligible: list[str]) -> Ticket:
        """Take out the ticket that is next, of one of these clients."""
        client = self.flows.take(eligible)
        ticket = self.clients[client].pop()
        self._left(client)
        return ticket

    def remove(self, ticket: Ticket) -> None:
        """Take out a ticket, wherever it stands."""
        self.clients[ticket.ask.client].remove(ticket)
        self._left(ticket.ask.client)

    def _left(self, client: str) -> None:
        self.queued -= 1
        if self.clients[client].size == 0:
            self._resting[client] = self.clients.pop(client)
            self.flows.rest(client)
            if len(self._resting) > MAX_IDLE_FLOWS:
                self._resting.popitem(last=False)

    def greediest_but(self, newcomer: Ask) -> ClientQueue | None:
        """The queue of the client that waits for most, by its weight, if that is more than ``newcomer`` would."""

        def part(tickets: int, weight: float) -> float:
            return tickets / weight

        own = self.clients.get(newcomer.client)
        limit = part((own.size if own is not None else 0) + 1, newcomer.client_weight)
        parts = {
            client: part(queue.size, queue.last().ask.client_weight)
            for client, queue in self.clients.items()
            if client != newcomer.client
        }
        client = max(parts, key=lambda key: parts[key], default=None)
        return self.clients[client] if client is not None and parts[client] > limit else None

    def turns_until(self, newcomer: Ask) -> float:
        """Slots that come free until it is ``newcomer``'s turn: its client's share of them serves its own queue."""
        own = self.clients.get(newcomer.client)
        others = sum(
            queue.last().ask.client_weight for client, queue in self.clients.items() if client != newcomer.client
        )
        ahead = own.size if own is not None else 0
        return min((ahead + 1) * (1 + others / newcomer.client_weight), self.queued + 1) + len(self.movers)

    def patience_s(self, newcomer: Ask) -> float:
        """How long the request may wait here."""
        allowed_s = self.limits.queue_timeout_s
        return allowed_s if newcomer.timeout_s is None else min(allowed_s, newcomer.timeout_s)

    def retry_after_s(self) -> int:
        """When a newcomer at the end of the queue would have its turn, in whole seconds."""
        return self.rate.retry_after_s(self.queued + len(self.movers) + 1)

    def stats(self) -> LaneStats:
        """The lane, now."""
        return LaneStats(
            active=self.active,
            queued=self.queued,
            max_active=self.limits.max_active,
            max_queue=self.limits.max_queue,
            granted=self.granted,
            spilled=self.spilled,
            demoted=self.demoted,
            rejected=dict(self.rejected),
        )
