"""The router as a process: engine host, HTTP server and traces, started together and ended in order."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
from anyio import to_thread

from lanes.supervisor import HostSettings, Supervisor
from lanes.wire import LaneSpec, ModelSpec
from opta_router.app import build_app
from opta_router.dispatch import Dispatcher
from opta_router.server import ServerLimits, serve, stop_signals
from opta_router.telemetry import Tracing, start_tracing
from policies.schema import Config

log = logging.getLogger(__name__)


def host_settings(config: Config) -> HostSettings:
    """What the host needs of the configuration."""
    interactive, throughput = config.lanes.interactive, config.lanes.throughput
    speculation = interactive.speculation
    return HostSettings(
        lanes={
            "interactive": LaneSpec(
                interactive.weight,
                interactive.max_active,
                0 if speculation.mode == "off" else speculation.max_draft_tokens,
            ),
            "throughput": LaneSpec(throughput.weight, throughput.max_active, max_step_s=throughput.max_step_ms / 1000),
        },
        models=tuple(
            ModelSpec(model.name, model.target, model.draft, model.preload, float(model.keep_alive))
            for model in config.models
        ),
    )


async def run_router(config: Config, announce: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; a second one cuts what still runs.

    Args:
        config: the whole configuration.
        announce: called once with the address, when requests are taken.

    Raises:
        BindError: the address cannot be listened on.
    """
    async with _tracing(config) as tracing:
        await _run(config, tracing, announce)


@asynccontextmanager
async def _tracing(config: Config) -> AsyncIterator[Tracing]:
    """What was recorded is sent, however the router ends."""
    tracing = start_tracing(config.telemetry)
    try:
        yield tracing
    finally:
        with anyio.CancelScope(shield=True):
            await to_thread.run_sync(tracing.shutdown)


async def _run(config: Config, tracing: Tracing, announce: Callable[[str], None]) -> None:
    supervisor = Supervisor(host_settings(config))
    dispatcher = Dispatcher(config, supervisor)
    limits = ServerLimits(
        max_connections=config.server.max_connections, drain_timeout_s=float(config.server.drain_timeout)
    )
    with stop_signals() as stop:

        async def shutdown() -> None:
            await stop.drain.wait()
            log.info("stopping: running requests have %g s", limits.drain_timeout_s)
            dispatcher.drain()

        async def announce_ready(url: str) -> None:
            await supervisor.wait_ready()
            announce(url)

        async with anyio.create_task_group() as tg:

            def bound(url: str) -> None:
                tg.start_soon(announce_ready, url)

            await tg.start(supervisor.run)
            await serve(
                build_app(config, supervisor, dispatcher, tracing),
                host=config.server.host,
                port=config.server.port,
                shutdown_trigger=shutdown,
                cut_trigger=stop.cut.wait,
                limits=limits,
                on_bound=bound,
            )
            tg.cancel_scope.cancel()
