"""What an operator sees of the engine, and of the router's willingness to give it work."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import msgspec

from opta_router.service import Service


class QuarantineView(msgspec.Struct, frozen=True, kw_only=True):
    """A model that is not loaded because its engines died of it; for how many more seconds, and what the last said."""

    for_s: int
    deaths: int
    cause: str


class EngineView(msgspec.Struct, frozen=True, kw_only=True):
    """The host, and what became of those before it. ``restarts`` and ``resumed`` count from the router's start.

    ``standby_pid`` is the host that stands by to take its place. ``waiting`` requests have a slot and no host;
    ``last_failure`` and ``last_activity`` are of the host that died last: why, and what its device was doing.
    """

    state: str
    not_ready: list[str]
    draining: bool
    pid: int | None
    standby_pid: int | None = None
    restarts: int
    resumed: int
    waiting: int
    last_failure: str | None
    last_activity: str | None
    quarantined: Mapping[str, QuarantineView]


def engine_view(service: Service) -> EngineView:
    """The engine, now."""
    engine = service.engine
    return EngineView(
        state=engine.state,
        not_ready=service.dispatcher.not_ready_reasons(),
        draining=service.dispatcher.draining,
        pid=engine.host_pid,
        standby_pid=engine.standby_pid,
        restarts=engine.restarts,
        resumed=engine.resumed,
        waiting=engine.waiting,
        last_failure=engine.last_failure,
        last_activity=engine.last_activity,
        quarantined=quarantine_views(service),
    )


def quarantine_views(service: Service) -> dict[str, QuarantineView]:
    """The models that are in quarantine now."""
    now_s = time.monotonic()
    return {
        name: QuarantineView(for_s=math.ceil(entry.until_s - now_s), deaths=entry.deaths, cause=entry.cause)
        for name, entry in service.engine.quarantined().items()
    }
