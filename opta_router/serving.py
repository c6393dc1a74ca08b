"""The router as a process: engine host, HTTP server and traces, started together and ended in order."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Final

import anyio
from anyio import to_thread

from lanes.pairs import UNLIMITED_BYTES, PairPolicy
from lanes.supervisor import HostSettings, Supervisor
from lanes.wire import Lane, LaneSpec, ModelSpec, PairFacts
from opta_router.app import build_app
from opta_router.capability import capability
from opta_router.configuration import Configuration
from opta_router.dispatch import Dispatcher
from opta_router.reloading import reload_on_hangup, watch_file
from opta_router.server import ServerLimits, make_room, serve, stop_signals
from opta_router.telemetry.recorder import Recorder, start_recorder
from policies.errors import SpeculationUnsupported
from policies.schema import Config
from policies.speculation import judge_pair, spec_policy

log = logging.getLogger(__name__)

UNKNOWN_SHARE_BYTES: Final = 1024**3


def host_settings(config: Config, in_force: Callable[[], Config] | None = None) -> HostSettings:
    """What the host needs of the configuration. ``in_force`` is asked about speculation, which a reload may change."""

    def objection(name: str, facts: PairFacts) -> str | None:
        return objection_to(name, facts, in_force() if in_force is not None else config)

    return HostSettings(
        pairs=PairPolicy(
            lambda memory_bytes: config.memory.limit.of(memory_bytes or UNLIMITED_BYTES),
            objection,
            lambda memory_bytes: prompt_cache_bytes(config, memory_bytes),
        ),
        lanes=lane_specs(config),
        standby=config.server.standby,
        models=tuple(
            ModelSpec(
                model.name, model.target, model.draft, model.preload, float(model.keep_alive), model.context_tokens
            )
            for model in config.models
        ),
    )


def prompt_cache_bytes(config: Config, memory_bytes: int) -> int:
    """What prompt caches may take on a device that has ``memory_bytes``; 0: unknown, so a share of it is, too."""
    amount = config.memory.prompt_caches
    if amount is None:
        return 0
    return amount.of(memory_bytes) if memory_bytes else amount.size_bytes or UNKNOWN_SHARE_BYTES


def lane_specs(config: Config) -> Mapping[Lane, LaneSpec]:
    """The lanes as the host knows them. Whether a request speculates is for the dispatcher to say, not for the lane."""
    interactive, throughput = config.lanes.interactive, config.lanes.throughput
    return {
        "interactive": LaneSpec(
            interactive.weight,
            interactive.max_active,
            interactive.speculation.max_draft_tokens,
            prompt_lookup=interactive.speculation.prompt_lookup,
        ),
        "throughput": LaneSpec(throughput.weight, throughput.max_active, max_step_s=throughput.max_step_ms / 1000),
    }


def objection_to(name: str, facts: PairFacts, config: Config) -> str | None:
    """Why a pair must not be loaded: the configuration insists on speculation, and this pair's cannot work."""
    model = next(model for model in config.models if model.name == name)
    try:
        judge_pair(capability(model, facts), spec_policy(config))
    except SpeculationUnsupported as exc:
        return str(exc)
    return None


async def run_router(
    configuration: Configuration, announce: Callable[[str], None], dropped_lines: Callable[[], int] = lambda: 0
) -> None:
    """Serve until SIGTERM or SIGINT; a second one cuts what still runs. SIGHUP and a change of the file reload.

    Args:
        configuration: as it was read for the start.
        announce: called once with the address, when requests are taken.
        dropped_lines: how much of the log was lost.

    Raises:
        BindError: the address cannot be listened on.
    """
    async with _telemetry(configuration.in_force, dropped_lines) as telemetry:
        await _run(configuration, telemetry, announce)


@asynccontextmanager
async def _telemetry(config: Config, dropped_lines: Callable[[], int]) -> AsyncIterator[Recorder]:
    """What was recorded is sent, however the router ends."""
    recorder = start_recorder(config, dropped_lines)
    try:
        yield recorder
    finally:
        with anyio.CancelScope(shield=True):
            await to_thread.run_sync(recorder.shutdown)


async def _run(configuration: Configuration, telemetry: Recorder, announce: Callable[[str], None]) -> None:
    config = configuration.in_force
    supervisor = Supervisor(host_settings(config, lambda: configuration.in_force))
    dispatcher = Dispatcher(config, supervisor)
    configuration.on_change(dispatcher.configure)
    configuration.on_change(lambda changed: supervisor.set_lanes(lane_specs(changed)))
    limits = ServerLimits(
        max_connections=config.server.max_connections, drain_timeout_s=float(config.server.drain_timeout)
    )
    make_room(limits)
    with stop_signals() as stop:

        async def shutdown() -> None:
            await stop.drain.wait()
            log.info("stopping: running requests have %g s", limits.drain_timeout_s)
            dispatcher.stop()

        async def announce_ready(url: str) -> None:
            await supervisor.wait_ready()
            announce(url)

        async with anyio.create_task_group() as tg:

            def bound(url: str) -> None:
                tg.start_soon(announce_ready, url)

            await tg.start(reload_on_hangup, configuration)
            tg.start_soon(watch_file, configuration)
            await tg.start(supervisor.run)
            await serve(
                build_app(configuration, supervisor, dispatcher, telemetry),
                host=config.server.host,
                port=config.server.port,
                shutdown_trigger=shutdown,
                cut_trigger=stop.cut.wait,
                limits=limits,
                on_bound=bound,
            )
            telemetry.close()  # no request is left to be told of; the engine takes its time to end, too
            tg.cancel_scope.cancel()
