"""The life of a pair, target and draft together, as a table."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from lanes.states import following


class PairState(StrEnum):
    """Where a pair is in its life. The values are public: ``/admin/models`` shows them."""

    ABSENT = "absent"
    PREPARING = "preparing"  # its files are fetched and looked at
    WAITING = "waiting"  # for memory that others hold
    LOADING = "loading"
    RESIDENT = "resident"
    LEAVING = "leaving"  # serves who has it, takes nobody new, and is then unloaded
    UNLOADING = "unloading"
    FAILED = "failed"


class PairEvent(StrEnum):
    """What can happen to a pair."""

    WANTED = "wanted"
    PREPARED = "prepared"
    WITHDRAWN = "withdrawn"  # nobody wants it any more
    ROOM = "room"
    LOADED = "loaded"
    PRESSED = "pressed"  # its memory is wanted, or an operator wants it gone
    RELIEVED = "relieved"  # it is not, after all
    IDLE = "idle"  # nobody has it, and it has to go
    UNLOADED = "unloaded"
    FAILED = "failed"
    FORGIVEN = "forgiven"  # its quarantine is over
    HOST_LOST = "host_lost"


_ANYWHERE: Final = {PairEvent.HOST_LOST: PairState.ABSENT}

TRANSITIONS: Final[dict[PairState, dict[PairEvent, PairState]]] = {
    PairState.ABSENT: {PairEvent.WANTED: PairState.PREPARING, PairEvent.FAILED: PairState.FAILED, **_ANYWHERE},
    PairState.PREPARING: {
        PairEvent.PREPARED: PairState.WAITING,
        PairEvent.FAILED: PairState.FAILED,
        **_ANYWHERE,
    },
    PairState.WAITING: {
        PairEvent.ROOM: PairState.LOADING,
        PairEvent.WITHDRAWN: PairState.ABSENT,
        PairEvent.FAILED: PairState.FAILED,
        **_ANYWHERE,
    },
    PairState.LOADING: {
        PairEvent.LOADED: PairState.RESIDENT,
        PairEvent.IDLE: PairState.UNLOADING,
        PairEvent.FAILED: PairState.FAILED,
        **_ANYWHERE,
    },
    PairState.RESIDENT: {PairEvent.PRESSED: PairState.LEAVING, PairEvent.IDLE: PairState.UNLOADING, **_ANYWHERE},
    PairState.LEAVING: {PairEvent.RELIEVED: PairState.RESIDENT, PairEvent.IDLE: PairState.UNLOADING, **_ANYWHERE},
    # A load that is given up may have ended, well or badly, before the host heard; Unload is answered all the same.
    PairState.UNLOADING: {
        PairEvent.UNLOADED: PairState.ABSENT,
        PairEvent.LOADED: PairState.UNLOADING,
        PairEvent.FAILED: PairState.UNLOADING,
        **_ANYWHERE,
    },
    PairState.FAILED: {PairEvent.WANTED: PairState.PREPARING, PairEvent.FORGIVEN: PairState.ABSENT, **_ANYWHERE},
}


def after(state: PairState, event: PairEvent) -> PairState:
    """The state that ``event`` leads to.

    Raises:
        IllegalTransition: the table has no such entry.
    """
    return following(TRANSITIONS, "pair", state, event)
