"""What a request asks of admission, and the place that it gets."""

from __future__ import annotations

from enum import StrEnum
from typing import Final, Literal

import msgspec

from lanes.wire import Lane
from policies.auto import AutoFacts
from policies.schema import AutoConfig

ANONYMOUS: Final = ""


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """What a request wants. ``route`` names the rule that chose ``lane``; for ``auto``, ``auto_rules`` choose.

    ``timeout_s`` is how long the client would wait for its turn; None: as long as the lane allows.
    """

    lane: Lane | Literal["auto"]
    route: str
    client: str = ANONYMOUS
    sub_client: str = ""
    client_weight: float = 1.0
    client_max_active: int | None = None
    timeout_s: float | None = None
    auto: AutoFacts = AutoFacts()
    auto_rules: AutoConfig = AutoConfig()


class TicketState(StrEnum):
    """Where a ticket is."""

    QUEUED = "queued"
    GRANTED = "granted"
    ACTIVE = "active"
    OVER = "over"


class Ticket:
    """A place in a lane. Only :class:`opta_router.admission.Admission` writes to it."""

    __slots__ = ("ask", "deadline_s", "lane", "moving_to", "offered_s", "route", "state")

    def __init__(self, ask: Ask, lane: Lane, route: str, offered_s: float, deadline_s: float) -> None:
        self.ask = ask
        self.lane: Lane = lane
        self.route = route
        self.offered_s = offered_s
        self.deadline_s = deadline_s
        self.state = TicketState.QUEUED
        self.moving_to: Lane | None = None

    def __repr__(self) -> str:
        return f"<Ticket {self.state} {self.lane} {self.route} client={self.ask.client!r}>"
