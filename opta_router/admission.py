"""Who gets a lane's next slot, who waits, and who is turned away. Pure: time comes in, effects go out.

A ticket's life is one row of states::

    offer ──► queued ──► granted ──► active ──► over
      │         │           │
      └─ rejected   withdrawn, expired

A slot belongs to a ticket from its grant to :meth:`Admission.release`, or to :meth:`Admission.withdraw` if whoever
asked has left before taking it. An active ticket may :meth:`~Admission.move` to the other lane: it keeps its slot until
it has one there, for which it waits before all that are queued, because its request already holds device memory. Such
tickets are never more than the lane that they leave has slots.

A free slot goes to the client that start-time fair queueing picks, by the clients' weights; among one client's tickets
it goes round its sub-clients with equal shares. Sub-clients are a level of their own because anyone can make up their
names: a thousand of them still share their client's one part.

A client may also have a bound of its own, over both lanes. At that bound it waits, others pass it, and it banks no
credit for that; the next slot that it gives back may be its own again, in the interactive lane before the other.

A full queue takes a newcomer only in place of the last ticket of a client that holds more than its part of the queue,
so that a flood from one client does not lock out the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import takewhile
from typing import Literal, TypeAlias

import msgspec

from lanes.wire import Lane
from opta_router.client_slots import ClientSlots
from opta_router.drain_rate import retry_after_s
from opta_router.forecast import wait_s
from opta_router.lane_queue import LaneLimits, LaneQueue, LaneStats
from opta_router.tickets import Ask, Ticket, TicketState
from policies.auto import Room, choose

RejectCode: TypeAlias = Literal["queue_full", "deadline", "draining", "shedding"]


class Granted(msgspec.Struct, frozen=True):
    """The ticket has a slot: :meth:`Admission.confirm` it, or withdraw it."""

    ticket: Ticket


class MoveGranted(msgspec.Struct, frozen=True):
    """The ticket has a slot in ``lane``, too, until :meth:`Admission.moved`."""

    ticket: Ticket
    lane: Lane


class Rejected(msgspec.Struct, frozen=True):
    """The ticket is over."""

    ticket: Ticket
    code: RejectCode
    retry_after_s: int


Effect: TypeAlias = Granted | MoveGranted | Rejected


class Admission:
    """Both lanes' slots and queues. Every method that may free or fill a slot returns effects, to be performed at once.

    ``now_s`` is any monotonic clock's, the same one in all calls.
    """

    def __init__(self, limits: Mapping[Lane, LaneLimits]) -> None:
        self._lanes: dict[Lane, LaneQueue] = {lane: LaneQueue(lane, bounds) for lane, bounds in limits.items()}
        self._clients = ClientSlots()
        self._in_two_lanes: set[Ticket] = set()
        self._draining = False
        self._shedding = False

    def offer(self, ask: Ask, now_s: float) -> tuple[Ticket, list[Effect]]:
        """A new request: its ticket is granted, queued or rejected; another's may be rejected in its place.

        Who would wait in vain, by the measured rate of the lane or of its client's own slots, is rejected at once.
        """
        self._clients.seen(ask, now_s)
        lane, route = self._placed(ask)
        queue = self._lanes[lane]
        ticket = Ticket(ask, lane, route, now_s, now_s + queue.patience_s(ask))
        if self._draining:
            return ticket, [self._reject(ticket, "draining")]
        if self._shedding:
            return ticket, [self._reject(ticket, "shedding")]
        if self._in_vain(queue, ask):
            return ticket, [self._reject(ticket, "deadline")]
        effects: list[Effect] = []
        if not self._fits(queue, ask):
            greediest = queue.greediest_but(ask) if queue.limits.max_queue else None
            if greediest is None:
                return ticket, [self._reject(ticket, "queue_full")]
            evicted = greediest.last()
            queue.remove(evicted)
            effects.append(self._reject(evicted, "queue_full"))
        if route == "spill":
            self._lanes[self._wanted(ask)[0]].spilled += 1
        queue.push(ticket)
        return ticket, effects + self._fill(queue, now_s)

    def confirm(self, ticket: Ticket) -> None:
        """Whoever asked has the grant in hand, and will release the slot."""
        self._expect(ticket, TicketState.GRANTED)
        ticket.state = TicketState.ACTIVE

    def withdraw(self, ticket: Ticket, now_s: float) -> list[Effect]:
        """Whoever asked has left before confirming: the place, or the slot, is given back. Too late: nothing."""
        if ticket.state is TicketState.QUEUED:
            self._lanes[ticket.lane].remove(ticket)
            ticket.state = TicketState.OVER
            return []
        return self._give_back(ticket, now_s) if ticket.state is TicketState.GRANTED else []

    def release(self, ticket: Ticket, now_s: float) -> list[Effect]:
        """The device has let go of a confirmed ticket's request."""
        self._expect(ticket, TicketState.ACTIVE)
        self._lanes[ticket.lane].rate.freed(now_s)
        self._clients.used(ticket.ask.client, now_s)
        return self._give_back(ticket, now_s)

    def move(self, ticket: Ticket, lane: Lane, now_s: float) -> list[Effect]:
        """A confirmed ticket asks for a slot of another lane, to go on there; it keeps its own meanwhile."""
        self._expect(ticket, TicketState.ACTIVE)
        if ticket.moving_to is not None or lane == ticket.lane:
            raise ValueError(f"{ticket!r} cannot move to {lane}")
        ticket.moving_to = lane
        self._lanes[lane].movers.append(ticket)
        return self._fill(self._lanes[lane], now_s)

    def moved(self, ticket: Ticket, lane: Lane, now_s: float) -> list[Effect]:
        """A ticket with a granted move is in ``lane`` now: where it wanted to go, or still where it was."""
        if ticket not in self._in_two_lanes or ticket.moving_to is None:
            raise ValueError(f"{ticket!r} has no granted move")
        left = ticket.lane if lane == ticket.moving_to else ticket.moving_to
        if left == ticket.lane:
            self._lanes[left].demoted += 1
            self._lanes[left].rate.freed(now_s)
        ticket.lane = lane
        self._end_move(ticket, left)
        return self._fill_all(now_s)

    def expire(self, now_s: float) -> list[Effect]:
        """Turn away everyone whose time in the queue is up."""
        effects: list[Effect] = []
        for queue in self._lanes.values():
            waiting = [ticket for client in queue.clients.values() for ticket in client]
            for ticket in waiting:
                if ticket.deadline_s <= now_s:
                    queue.remove(ticket)
                    effects.append(self._reject(ticket, "deadline"))
        return effects

    def drain(self) -> list[Effect]:
        """Take no new work, and turn away whoever waits; what is active goes on."""
        self._draining = True
        effects: list[Effect] = []
        for queue in self._lanes.values():
            for ticket in [ticket for client in queue.clients.values() for ticket in client]:
                queue.remove(ticket)
                effects.append(self._reject(ticket, "draining"))
        return effects

    def undrain(self) -> None:
        """Take new work again."""
        self._draining = False

    def configure(self, limits: Mapping[Lane, LaneLimits], now_s: float) -> list[Effect]:
        """New bounds. What is active or queued beyond a smaller one stays; more slots are filled at once."""
        for lane, bounds in limits.items():
            queue = self._lanes[lane]
            queue.rate.slots_changed(queue.limits.max_active, bounds.max_active)
            queue.limits = bounds
        return self._fill_all(now_s)

    def shed(self, shedding: bool) -> None:
        """Turn new requests away, or take them again; those that wait keep their places."""
        self._shedding = shedding

    @property
    def draining(self) -> bool:
        """Whether new work is turned away."""
        return self._draining

    @property
    def shedding(self) -> bool:
        """Whether it is turned away for want of memory."""
        return self._shedding

    def stats(self) -> dict[Lane, LaneStats]:
        """Every lane, now."""
        return {lane: queue.stats() for lane, queue in self._lanes.items()}

    def check_integrity(self) -> None:
        """Count again what is kept as a number. Raises AssertionError."""
        active = sum(queue.active for queue in self._lanes.values())
        assert active == self._clients.total() + len(self._in_two_lanes), (active, self._clients.total())
        self._clients.check_integrity()
        assert all(t.state is TicketState.ACTIVE and t.moving_to for t in self._in_two_lanes), self._in_two_lanes
        for lane, queue in self._lanes.items():
            waiting = [ticket for client in queue.clients.values() for ticket in client]
            assert queue.queued == len(waiting) == sum(client.size for client in queue.clients.values()), lane
            assert all(ticket.state is TicketState.QUEUED and ticket.lane == lane for ticket in waiting), lane
            assert queue.active >= 0, lane
            assert all(t.state is TicketState.ACTIVE and t.moving_to == lane for t in queue.movers), lane
            assert self._in_two_lanes.isdisjoint(queue.movers), lane

    def _wanted(self, ask: Ask) -> tuple[Lane, str]:
        """Lane and route of a request before any spilling."""
        if ask.lane != "auto":
            return ask.lane, ask.route
        throughput = self._lanes["throughput"]
        room = Room(
            interactive=self._has_room(self._lanes["interactive"], ask),
            throughput=self._has_room(throughput, ask),
            throughput_queue=self._fits(throughput, ask) and not self._in_vain(throughput, ask),
            batch=throughput.active > 0,
        )
        return choose(ask.auto_rules, ask.auto, room)

    def _placed(self, ask: Ask) -> tuple[Lane, str]:
        lane, route = self._wanted(ask)
        spill = self._lanes[lane].limits.spill
        if spill is not None and not self._fits(self._lanes[lane], ask) and self._fits(self._lanes[spill], ask):
            return spill, "spill"
        return lane, route

    def _in_vain(self, queue: LaneQueue, ask: Ask) -> bool:
        """Whether the request's turn would come too late."""
        if self._has_room(queue, ask):
            return False
        return (self._wait_s(queue, ask) or 0.0) > queue.patience_s(ask)

    def _wait_s(self, queue: LaneQueue, ask: Ask) -> float | None:
        earlier = takewhile(lambda lane: lane is not queue, self._lanes.values())
        return wait_s(ask, queue, earlier, self._clients)

    def _fits(self, queue: LaneQueue, ask: Ask) -> bool:
        return queue.queued < queue.limits.max_queue or self._has_room(queue, ask)

    def _has_room(self, queue: LaneQueue, ask: Ask) -> bool:
        """Whether the request would run at once. While a slot is free, whoever waits is at its own bound."""
        return not queue.full and self._clients.has_room(ask)

    def _eligible(self, queue: LaneQueue) -> list[str]:
        return [client for client, tickets in queue.clients.items() if self._clients.has_room(tickets.last().ask)]

    def _fill(self, queue: LaneQueue, now_s: float) -> list[Effect]:
        effects: list[Effect] = []
        while queue.movers and not queue.full:
            mover = queue.movers.popleft()
            self._in_two_lanes.add(mover)
            queue.active += 1
            effects.append(MoveGranted(mover, queue.lane))
        while not queue.full and (eligible := self._eligible(queue)):
            ticket = queue.pop(eligible)
            ticket.state = TicketState.GRANTED
            queue.active += 1
            queue.granted += 1
            self._clients.take(ticket.ask, now_s)
            effects.append(Granted(ticket))
        queue.rate.taken(queue.share_taken, now_s)
        return effects

    def _fill_all(self, now_s: float) -> list[Effect]:
        # A client at its bound may wait in the other lane, too.
        return [effect for queue in self._lanes.values() for effect in self._fill(queue, now_s)]

    def _give_back(self, ticket: Ticket, now_s: float) -> list[Effect]:
        ticket.state = TicketState.OVER
        if ticket in self._in_two_lanes and ticket.moving_to is not None:
            self._end_move(ticket, ticket.moving_to)
        elif ticket.moving_to is not None:
            self._lanes[ticket.moving_to].movers.remove(ticket)
        self._lanes[ticket.lane].active -= 1
        self._clients.give_back(ticket.ask.client)
        effects = self._fill_all(now_s)
        self._clients.settle(ticket.ask.client, now_s)
        return effects

    def _end_move(self, ticket: Ticket, left: Lane) -> None:
        self._in_two_lanes.remove(ticket)
        self._lanes[left].active -= 1
        ticket.moving_to = None

    def _reject(self, ticket: Ticket, code: RejectCode) -> Rejected:
        ticket.state = TicketState.OVER
        queue = self._lanes[ticket.lane]
        queue.rejected[code] = queue.rejected.get(code, 0) + 1
        return Rejected(ticket, code, retry_after_s(self._wait_s(queue, ticket.ask)))

    @staticmethod
    def _expect(ticket: Ticket, state: TicketState) -> None:
        if ticket.state is not state:
            raise ValueError(f"{ticket!r} is not {state}")
