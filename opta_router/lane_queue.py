"""One lane's slots, and who waits for them: fair shares for clients, and for the sub-clients of each."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from lanes.fair_share import FairShare
from lanes.wire import Lane
from opta_router.drain_rate import DrainRate
from opta_router.tickets import Ask, Ticket

MAX_IDLE_FLOWS: Final = 256


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

    def turns_until(self, sub_client: str) -> int:
        """Turns of this client until a newcomer of ``sub_client`` has its own: all sub-clients go round with it."""
        own = len(self._waiting.get(sub_client, ())) + 1
        return own + sum(min(len(tickets), own) for name, tickets in self._waiting.items() if name != sub_client)

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

    @property
    def full(self) -> bool:
        """Whether all slots are taken."""
        return self.active >= self.limits.max_active

    @property
    def share_taken(self) -> float:
        """The share of the slots that is taken, 0 to 1."""
        return min(self.active / self.limits.max_active, 1.0)

    def waiting_of(self, client: str) -> int:
        """How many tickets of a client wait here."""
        return self.clients[client].size if client in self.clients else 0

    def own_turns_until(self, newcomer: Ask) -> int:
        """Slots that its client gets here until it is ``newcomer``'s turn."""
        own = self.clients.get(newcomer.client)
        return own.turns_until(newcomer.sub_client) if own is not None else 1

    def turns_until(self, newcomer: Ask) -> float:
        """Slots that come free until it is ``newcomer``'s turn, with those that go to the other clients meanwhile."""
        own = self.own_turns_until(newcomer)
        others = sum(
            min(queue.size, own * queue.last().ask.client_weight / newcomer.client_weight)
            for client, queue in self.clients.items()
            if client != newcomer.client
        )
        return own + others + len(self.movers)

    def patience_s(self, newcomer: Ask) -> float:
        """How long the request may wait here."""
        allowed_s = self.limits.queue_timeout_s
        return allowed_s if newcomer.timeout_s is None else min(allowed_s, newcomer.timeout_s)

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
