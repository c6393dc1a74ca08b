"""When a newcomer's turn would come, by the measured rates of its lane's slots and of its client's own."""

from __future__ import annotations

from collections.abc import Iterable

from opta_router.client_slots import ClientSlots
from opta_router.lane_queue import LaneQueue
from opta_router.tickets import Ask


def wait_s(ask: Ask, queue: LaneQueue, earlier: Iterable[LaneQueue], clients: ClientSlots) -> float | None:
    """How long a newcomer would wait for what it lacks: a slot of the lane, one of its client's, or the later of both.

    None before there are rates of those.

    Args:
        ask: what the newcomer wants, of a client with ``client_max_active`` or without.
        queue: the lane's.
        earlier: the lanes that are filled before this one when a client gives back a slot.
        clients: what each client holds.
    """
    waits: list[float | None] = []
    bound = ask.client_max_active
    if bound is not None and not clients.has_room(ask):
        waits.append(clients.wait_s(ask.client, _client_turns_until(ask, bound, queue, earlier)))
    if queue.full or not waits:
        waits.append(queue.rate.wait_s(queue.turns_until(ask)))
    return max((each_s for each_s in waits if each_s is not None), default=None)


def _client_turns_until(ask: Ask, bound: int, queue: LaneQueue, earlier: Iterable[LaneQueue]) -> float:
    """Slots that a client at its ``bound`` gives back until it is the newcomer's turn.

    What waits in an earlier lane comes before it, but takes no more slots at a time than that lane has.
    """
    turns: float = queue.own_turns_until(ask)
    for lane in earlier:
        left = bound - lane.limits.max_active
        before = turns + lane.waiting_of(ask.client)
        turns = min(before, turns * bound / left) if left > 0 else before
    return turns
