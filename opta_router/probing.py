"""What this machine and the installed engines can do, found by starting a host and loading what is configured."""

from __future__ import annotations

from typing import Literal

import anyio
import msgspec

from lanes import wire
from lanes.pairs import Pairs
from lanes.supervisor import Supervisor
from opta_router.capability import capability
from opta_router.serving import host_settings
from policies.errors import SpeculationUnsupported
from policies.schema import Config, ModelConfig
from policies.speculation import ACTIVE, judge_pair, spec_policy

PROBE_TIMEOUT_S = 600.0


class LaneProbe(msgspec.Struct, frozen=True, kw_only=True):
    """What one lane can do with one model.

    ``path`` is the call path that speculation takes or would take here, and ``obstacle`` what the installed engine
    lacks for it. ``speculation`` is a code of :class:`policies.speculation.SpecReason`.
    """

    lane: wire.Lane
    works: bool
    path: str
    obstacle: str | None
    speculates: bool = False
    speculation: str = "lane"
    detail: str | None = None


class ModelProbe(msgspec.Struct, frozen=True, kw_only=True):
    """One configured model; ``problem`` says why it could not be loaded."""

    name: str
    target: str
    draft: str | None
    problem: str | None = None
    info: wire.ModelInfo | None = None
    facts: wire.PairFacts | None = None
    lanes: tuple[LaneProbe, ...] = ()


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """The whole answer."""

    status: Literal["ok", "failed"]
    problem: str | None
    versions: wire.Versions | None
    models: tuple[ModelProbe, ...]


async def probe(config: Config) -> Probe:
    """Start a host, let it load every configured model, look, and end it."""
    settings = host_settings(config)
    models = tuple(msgspec.structs.replace(model, preload=True, keep_alive_s=-1) for model in settings.models)
    lenient = msgspec.structs.replace(settings.pairs, objection=lambda name, facts: None)
    supervisor = Supervisor(msgspec.structs.replace(settings, models=models, pairs=lenient))
    async with anyio.create_task_group() as tg:
        await tg.start(supervisor.run)
        with anyio.move_on_after(PROBE_TIMEOUT_S):
            await _ready_or_failed(supervisor)
        found = Probe(
            status="ok" if supervisor.pairs.loaded else "failed",
            problem=None if supervisor.pairs.loaded else supervisor.last_failure or "no model could be loaded",
            versions=supervisor.versions,
            models=tuple(_model(config, model, supervisor.pairs) for model in config.models),
        )
        tg.cancel_scope.cancel()
    return found


async def _ready_or_failed(supervisor: Supervisor) -> None:
    """A host that does not start at once will not start for a probe."""
    async with anyio.create_task_group() as tg:

        async def give_up() -> None:
            await supervisor.wait_lost()
            tg.cancel_scope.cancel()

        tg.start_soon(give_up)
        await supervisor.wait_ready()
        tg.cancel_scope.cancel()


def _model(config: Config, model: ModelConfig, pairs: Pairs) -> ModelProbe:
    facts = pairs.facts.get(model.name)
    found = ModelProbe(name=model.name, target=model.target, draft=model.draft, facts=facts)
    if model.name not in pairs.loaded or facts is None:
        problem = pairs.view(model.name).message or "not loaded"
        return msgspec.structs.replace(found, problem=problem)
    return msgspec.structs.replace(found, info=pairs.loaded[model.name], lanes=_lanes(config, model, facts))


def _lanes(config: Config, model: ModelConfig, facts: wire.PairFacts) -> tuple[LaneProbe, ...]:
    detail = None
    try:
        reason = judge_pair(capability(model, facts), spec_policy(config)).value
    except SpeculationUnsupported as exc:
        reason, detail = exc.reason, str(exc)
    return tuple(
        LaneProbe(
            lane=path.lane,
            works=path.lane == "throughput" or detail is None,
            path=path.path,
            obstacle=path.problem,
            speculates=path.lane == "interactive" and reason in ACTIVE,
            speculation=reason if path.lane == "interactive" else "lane",
            detail=detail if path.lane == "interactive" else None,
        )
        for path in facts.paths
    )
