"""What the live page and ``opta-router top`` show of a router: one look at everything, as data."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final, Literal, TypeAlias, get_args

import msgspec

from lanes.wire import Lane
from opta_router.http.admin import LaneView, lane_views
from opta_router.http.admin_models import ModelsView, views
from opta_router.http.engine import EngineView, engine_view
from opta_router.in_flight import InFlight
from opta_router.journal import Entry, Moment
from opta_router.service import Service
from opta_router.version import VERSION

MAX_SHOWN: Final = 128
"""Requests in flight that a snapshot lists. The lanes' counts are of all."""

Stage: TypeAlias = Literal["loading", "queued", "prefill", "decode", "waiting_for_engine"]


class FlightView(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A request that has not ended. ``lane`` may be ``auto`` while its model loads.

    ``accepted`` and ``proposed`` are draft tokens, None where it does not speculate.
    """

    seq: int
    request_id: str
    model: str
    lane: str
    route: str
    stage: Stage
    age_ms: float
    moments: tuple[Moment, ...]
    client: str | None = None
    sub_client: str | None = None
    max_tokens: int | None = None
    tokens: int = 0
    proposed: int | None = None
    accepted: int | None = None


class DraftView(msgspec.Struct, frozen=True, kw_only=True):
    """What speculation did for a model's answers since the router's start, in draft tokens."""

    rounds: int
    proposed: int
    accepted: int
    rejected: int
    ignored: int


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A router, now. ``at_s`` is of a monotonic clock: rates are differences of two snapshots.

    ``tokens`` are those of answers by the lane that made them, since the start, None where nothing is counted;
    ``drafts`` are by model. Both are of running requests, too.
    """

    version: str
    at_s: float
    started_s: int
    engine: EngineView
    lanes: Mapping[str, LaneView]
    models: ModelsView
    tokens: Mapping[Lane, int] | None
    drafts: Mapping[str, DraftView]
    min_acceptance: float
    in_flight: tuple[FlightView, ...]
    not_shown: int


def snapshot(service: Service) -> Snapshot:
    """Look at everything; nothing changes by it."""
    dispatcher = service.dispatcher
    in_flight = dispatcher.in_flight()
    by_trace = {flight.trace: flight for flight in in_flight}
    open_requests = service.journal.in_flight()
    engine = engine_view(service)
    flights = tuple(
        _flight(one.entry(), by_trace.get(one), one.age_s, engine_lost=engine.waiting > 0)
        for one in open_requests[:MAX_SHOWN]
    )
    return Snapshot(
        version=VERSION,
        at_s=round(time.monotonic(), 3),
        started_s=service.started_s,
        engine=engine,
        lanes=lane_views(service),
        models=views(service),
        tokens=_tokens(service) if service.telemetry.counts else None,
        drafts=_drafts(service, in_flight),
        min_acceptance=service.config.speculation.min_acceptance,
        in_flight=flights,
        not_shown=len(open_requests) - len(flights),
    )


def _flight(entry: Entry, flight: InFlight | None, age_s: float, *, engine_lost: bool) -> FlightView:
    counters = flight.speculative if flight is not None else None
    return FlightView(
        seq=entry.seq,
        request_id=entry.request_id,
        model=entry.model,
        lane=flight.lane if flight is not None else entry.lane,
        route=entry.route,
        stage=_stage(entry, flight, engine_lost=engine_lost),
        age_ms=round(age_s * 1000),
        moments=tuple(entry.moments),
        client=entry.client,
        sub_client=entry.sub_client,
        max_tokens=entry.max_tokens,
        tokens=flight.emitted_tokens if flight is not None else 0,
        proposed=counters.proposed if counters is not None else None,
        accepted=counters.accepted if counters is not None else None,
    )


def _stage(entry: Entry, flight: InFlight | None, *, engine_lost: bool) -> Stage:
    last = entry.moments[-1].name if entry.moments else ""
    if flight is None:
        return "loading"
    if flight.stage == "queued":
        return "queued"
    if last == "interrupted" and engine_lost:
        return "waiting_for_engine"
    return "decode" if flight.emitted_tokens else "prefill"


def _tokens(service: Service) -> dict[Lane, int]:
    tokens: dict[Lane, int] = dict.fromkeys(get_args(Lane), 0)
    for (lane, _, kind), count in service.telemetry.metrics.tally.reading().tokens.items():
        if kind == "output":
            tokens[lane] += count
    return tokens


def _drafts(service: Service, in_flight: list[InFlight]) -> dict[str, DraftView]:
    counters = {reading.model: reading.counters for reading in service.dispatcher.speculation.readings()}
    for flight in in_flight:
        if flight.speculative is not None:
            counters[flight.model] += flight.speculative
    return {
        model: DraftView(
            rounds=drafts.rounds,
            proposed=drafts.proposed,
            accepted=drafts.accepted,
            rejected=drafts.rejected,
            ignored=drafts.ignored,
        )
        for model, drafts in counters.items()
    }
