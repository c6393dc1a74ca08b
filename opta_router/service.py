"""What every endpoint works with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, cast, get_args

import anyio
import msgspec

from lanes.wire import Lane
from opta_router.admission import RejectCode
from opta_router.configuration import Configuration
from opta_router.dispatch import Dispatcher
from opta_router.engine import Engine
from opta_router.journal import Journal
from opta_router.telemetry.readings import ConfigurationReading, EngineReading, LaneReading
from opta_router.telemetry.recorder import Recorder
from policies.schema import Config

NONE_REJECTED: Final[Mapping[str, int]] = dict.fromkeys(get_args(RejectCode), 0)


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """One running router. ``started_s`` is in seconds of the Unix epoch; who benchmarks it holds ``benchmarking``."""

    configuration: Configuration
    engine: Engine
    dispatcher: Dispatcher
    telemetry: Recorder
    benchmarking: anyio.Lock
    journal: Journal
    started_s: int

    @property
    def config(self) -> Config:
        """The configuration in force. A request reads it once: from then on it may change."""
        return self.configuration.in_force

    def lanes(self) -> dict[Lane, LaneReading]:
        """What goes on in each lane, for metrics and operators alike."""
        on_device = self.engine.lanes
        return {
            lane: LaneReading(
                weight=getattr(self.config.lanes, lane).weight,
                active=stats.active,
                queued=stats.queued,
                spilled=stats.spilled,
                rejected={**NONE_REJECTED, **stats.rejected},
                device_s=on_device[lane].device_s,
                bounded_steps=on_device[lane].bounded_steps,
                late_steps=on_device[lane].late_steps,
            )
            for lane, stats in self.dispatcher.stats().items()
        }

    def engine_reading(self) -> EngineReading:
        """The host and its models, for metrics."""
        engine = self.engine
        return EngineReading(
            restarts=engine.restarts,
            resumed=engine.resumed,
            ready=not self.dispatcher.not_ready_reasons(),
            memory_bytes=engine.stats.active_memory_bytes if engine.stats is not None else None,
            model_bytes={view.name: view.reserved_bytes for view in engine.pairs.views() if view.reserved_bytes},
        )

    def configuration_reading(self) -> ConfigurationReading:
        """What became of reloads, for metrics."""
        return ConfigurationReading(applied=self.configuration.applied, refused=self.configuration.refused)


def service_of(scope: Mapping[str, Any]) -> Service:
    """The service behind an ASGI scope."""
    return cast(Service, scope["app"].state.service)
