"""What an operator may see of the models, and do about them: ``/admin/models``."""

from __future__ import annotations

import logging
from collections import Counter

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from lanes import wire
from lanes.pair_states import PairState
from lanes.pairs import Progress
from opta_router.capability import capability
from opta_router.errors import ModelNotFound
from opta_router.http.engine import QuarantineView, quarantine_views
from opta_router.request import ProposerReport, proposers_of
from opta_router.service import Service
from opta_router.speculation import PairReading, described
from policies.acceptance import GateView
from policies.errors import SpeculationUnsupported
from policies.schema import ApprovedPair, ModelConfig
from policies.speculation import ACTIVE, SpecReason, approval_of, judge_pair, spec_policy

audit = logging.getLogger("opta_router.audit")

AT_REST = frozenset({PairState.ABSENT, PairState.RESIDENT, PairState.FAILED})


class SpeculationCounts(msgspec.Struct, frozen=True, kw_only=True):
    """The engine's counts since the router's start, in draft tokens; ``reasons``: what was decided, how often.

    ``mean_accepted_tokens`` is of a round; ``acceptance_by_position`` is the accepted share of what was compared as the
    first, second, … token of a round; ``proposers`` has the part of the draft model and of prompt lookup.
    """

    rounds: int
    proposed: int
    accepted: int
    rejected: int
    ignored: int
    acceptance_ratio: float | None
    mean_accepted_tokens: float | None
    acceptance_by_position: tuple[float, ...] = ()
    proposers: dict[wire.Proposer, ProposerReport] = {}
    reasons: dict[str, int]


class SpeculationView(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the pair speculates. ``active`` is None as long as nobody has looked at it and nothing else decides.

    ``approval``: the entry of the matrix that approves it, with the evidence.
    """

    requested: bool
    active: bool | None
    reason: str | None
    detail: str | None = None
    approval: ApprovedPair | None
    gate: GateView
    counts: SpeculationCounts


class ModelView(msgspec.Struct, frozen=True, kw_only=True):
    """One configured model. ``facts`` and ``progress`` are None where nothing is known, or under way.

    One in quarantine has failed, until then; ``load`` ends it. ``prompt_caches`` are as of a second ago.
    """

    name: str
    target: str
    draft: str | None
    aliases: tuple[str, ...]
    state: PairState
    in_state_s: float
    message: str | None
    quarantine: QuarantineView | None
    in_use: int
    waiting: int
    preload: bool
    keep_alive: float
    pinned: bool
    reserved_bytes: int
    load_s: float | None
    progress: Progress | None
    prompt_caches: wire.PromptCacheStats = wire.PromptCacheStats()
    speculation: SpeculationView
    facts: wire.PairFacts | None


class ModelsView(msgspec.Struct, frozen=True, kw_only=True):
    """All models, and the memory that they share. ``active_bytes`` is what the device uses, as of a second ago.

    ``prompt_cache_limit_bytes`` is what prompt caches may take now: what is configured, or what models leave.
    """

    limit_bytes: int
    prompt_cache_limit_bytes: int = 0
    reserved_bytes: int
    active_bytes: int | None
    models: tuple[ModelView, ...]


async def models(_request: Request, service: Service, _who: str) -> Response:
    """``GET /admin/models``."""
    return _json(views(service))


async def load(request: Request, service: Service, who: str) -> Response:
    """``POST /admin/models/{name}/load``: 200 if it is resident, 202 if it is on its way."""
    name = _named(request, service)
    audit.info("load of model %s by %s", name, who)
    service.engine.lift_quarantine(name)
    service.dispatcher.speculation.reset(name)
    service.engine.pairs.load(name)
    return _after(service, name)


async def unload(request: Request, service: Service, who: str) -> Response:
    """``POST /admin/models/{name}/unload``: 200 if it is absent, 202 if requests must end first."""
    name = _named(request, service)
    audit.info("unload of model %s by %s", name, who)
    service.engine.pairs.unload(name)
    return _after(service, name)


def views(service: Service) -> ModelsView:
    """Everything that is known of the models."""
    pairs, stats = service.engine.pairs, service.engine.stats
    found = tuple(_view(service, model) for model in service.config.models)
    return ModelsView(
        limit_bytes=pairs.limit_bytes,
        prompt_cache_limit_bytes=pairs.prompt_cache_limit_bytes,
        reserved_bytes=sum(view.reserved_bytes for view in found),
        active_bytes=stats.active_memory_bytes if stats is not None else None,
        models=found,
    )


def _view(service: Service, model: ModelConfig) -> ModelView:
    pairs = service.engine.pairs
    pair, facts, info = pairs.view(model.name), pairs.facts.get(model.name), pairs.loaded.get(model.name)
    return ModelView(
        name=model.name,
        target=model.target,
        draft=model.draft,
        aliases=model.aliases,
        state=pair.state,
        in_state_s=pairs.seconds_in_state(model.name),
        message=pair.message,
        quarantine=quarantine_views(service).get(model.name),
        in_use=pair.in_use,
        waiting=pair.waiting,
        preload=model.preload,
        keep_alive=float(model.keep_alive),
        pinned=pair.pinned,
        reserved_bytes=pair.reserved_bytes,
        load_s=info.load_s if info is not None else None,
        progress=pairs.progress(model.name),
        prompt_caches=service.engine.prompt_caches.get(model.name, wire.PromptCacheStats()),
        speculation=_speculation(service, model, facts),
        facts=facts,
    )


def _speculation(service: Service, model: ModelConfig, facts: wire.PairFacts | None) -> SpeculationView:
    policy = spec_policy(service.config)
    reading = service.dispatcher.speculation.reading(model.name)
    active, reason, detail = _verdict(service, model, facts)
    return SpeculationView(
        requested=policy.mode != "off" and (model.draft is not None or policy.prompt_lookup),
        active=active,
        reason=reason,
        detail=detail,
        approval=approval_of(capability(model, facts), policy),
        gate=reading.gate,
        counts=_counts(reading),
    )


def _verdict(
    service: Service, model: ModelConfig, facts: wire.PairFacts | None
) -> tuple[bool | None, str | None, str | None]:
    """Whether the pair speculates, the reason's code, and what else there is to say."""
    try:
        reason = judge_pair(capability(model, facts), spec_policy(service.config))
    except SpeculationUnsupported as exc:
        return False, exc.reason, str(exc)
    speculates = reason in ACTIVE
    if speculates and facts is None:
        return None, None, None
    if speculates and service.dispatcher.speculation.low_acceptance(model.name):
        gate = service.dispatcher.speculation.reading(model.name).gate
        return False, SpecReason.LOW_ACCEPTANCE, described(gate)
    return speculates, reason, None


def _counts(reading: PairReading) -> SpeculationCounts:
    counters, reasons = reading.counters, Counter[str]()
    for outcome, times in reading.outcomes.items():
        reasons[outcome.reason] += times
    ratio = counters.acceptance_ratio
    return SpeculationCounts(
        rounds=counters.rounds,
        proposed=counters.proposed,
        accepted=counters.accepted,
        rejected=counters.rejected,
        ignored=counters.ignored,
        acceptance_ratio=None if ratio is None else round(ratio, 4),
        mean_accepted_tokens=None if counters.mean_accepted is None else round(counters.mean_accepted, 4),
        acceptance_by_position=tuple(round(share, 4) for share in counters.acceptance_by_position),
        proposers=proposers_of(counters),
        reasons=dict(reasons),
    )


def _named(request: Request, service: Service) -> str:
    name: str = request.path_params["name"]
    if name not in {model.name for model in service.config.models}:
        raise ModelNotFound(f"model {name[:100]!a} is not configured")
    return name


def _after(service: Service, name: str) -> Response:
    model = next(model for model in service.config.models if model.name == name)
    view = _view(service, model)
    return _json(view, 200 if view.state in AT_REST else 202)


def _json(body: ModelsView | ModelView, status: int = 200) -> Response:
    return Response(msgspec.json.encode(body), status, media_type="application/json")
