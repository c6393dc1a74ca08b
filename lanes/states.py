"""The life of a host, as a table."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final, TypeVar


class HostState(StrEnum):
    """Where a supervised host is in its life."""

    STOPPED = "stopped"
    STARTING = "starting"  # spawned; not yet Ready
    READY = "ready"
    RESTARTING = "restarting"  # it died; waiting to spawn the next


class HostEvent(StrEnum):
    """What can happen to a host."""

    SPAWN = "spawn"
    READY = "ready"
    DIED = "died"
    STOP = "stop"


TRANSITIONS: Final[dict[HostState, dict[HostEvent, HostState]]] = {
    HostState.STOPPED: {HostEvent.SPAWN: HostState.STARTING, HostEvent.STOP: HostState.STOPPED},
    HostState.STARTING: {
        HostEvent.READY: HostState.READY,
        HostEvent.DIED: HostState.RESTARTING,
        HostEvent.STOP: HostState.STOPPED,
    },
    HostState.READY: {HostEvent.DIED: HostState.RESTARTING, HostEvent.STOP: HostState.STOPPED},
    HostState.RESTARTING: {HostEvent.SPAWN: HostState.STARTING, HostEvent.STOP: HostState.STOPPED},
}


State = TypeVar("State", bound=StrEnum)
Event = TypeVar("Event", bound=StrEnum)


class IllegalTransition(Exception):
    """An event that cannot happen in the present state; the state is unchanged."""


def following(table: Mapping[State, Mapping[Event, State]], what: str, state: State, event: Event) -> State:
    """The state that ``event`` leads to in ``table``; ``what`` names whatever is in ``state``.

    Raises:
        IllegalTransition: the table has no such entry.
    """
    try:
        return table[state][event]
    except KeyError:
        allowed = ", ".join(table[state])
        raise IllegalTransition(f"{what} is {state}: {event} cannot happen; possible: {allowed}") from None


def after(state: HostState, event: HostEvent) -> HostState:
    """The state that ``event`` leads to.

    Raises:
        IllegalTransition: the table has no such entry.
    """
    return following(TRANSITIONS, "host", state, event)
