"""What this machine and the installed engines can do, found by starting a host and loading what is configured."""

from __future__ import annotations

from typing import Literal

import anyio
import msgspec

from lanes import wire
from lanes.supervisor import Supervisor
from opta_router.dispatch import capability
from opta_router.serving import host_settings
from policies.errors import SpeculationUnsupported
from policies.schema import Config
from policies.speculation import judge_pair, spec_policy

PROBE_TIMEOUT_S = 600.0


class LaneProbe(msgspec.Struct, frozen=True, kw_only=True):
    """What one lane can do with one model. ``speculation`` is a code of :class:`policies.speculation.SpecReason`."""

    lane: wire.Lane
    works: bool
    engine: str
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
    supervisor = Supervisor(msgspec.structs.replace(settings, models=models))
    async with anyio.create_task_group() as tg:
        await tg.start(supervisor.run)
        with anyio.move_on_after(PROBE_TIMEOUT_S):
            await _ready_or_failed(supervisor)
        found = Probe(
            status="ok" if supervisor.models else "failed",
            problem=None if supervisor.models else supervisor.last_failure or "no model could be loaded",
            versions=supervisor.versions,
            models=tuple(_model(config, spec, supervisor) for spec in models),
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


def _model(config: Config, spec: wire.ModelSpec, supervisor: Supervisor) -> ModelProbe:
    info = supervisor.models.get(spec.name)
    versions = supervisor.versions
    if info is None or versions is None:
        problem = supervisor.load_failures.get(spec.name) or "not loaded"
        return ModelProbe(name=spec.name, target=spec.target, draft=spec.draft, problem=problem)
    model = next(model for model in config.models if model.name == spec.name)
    detail = None
    try:
        reason = judge_pair(capability(model, info), spec_policy(config)).value
    except SpeculationUnsupported as exc:
        reason, detail = exc.reason, str(exc)
    interactive = LaneProbe(
        lane="interactive",
        works=detail is None,
        engine=f"mlx-lm {versions.mlx_lm}",
        speculates=detail is None and reason in {"approved", "required"},
        speculation=reason,
        detail=detail,
    )
    throughput = LaneProbe(lane="throughput", works=True, engine=f"vllm-mlx {versions.vllm_mlx}")
    return ModelProbe(name=spec.name, target=spec.target, draft=spec.draft, info=info, lanes=(interactive, throughput))
