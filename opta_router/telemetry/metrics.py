"""Metrics: one provider, read by whoever scrapes ``GET /metrics`` and, with an endpoint, sent over OTLP.

Every instrument here is *observable*: its numbers are kept by their owners anyway and read when somebody collects, so
that a request costs nothing. Counters have the SDK's cumulative temporality: each collection says the sum so far.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import version
from typing import Final, TypeAlias

import msgspec
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from lanes.wire import Lane
from opta_router.telemetry import names
from opta_router.telemetry.quiet_logs import quieten
from opta_router.telemetry.resource import EXPORT_TIMEOUT_S, SHUTDOWN_S, resource_of
from opta_router.telemetry.setup import signal_endpoint
from opta_router.telemetry.spec_metrics import ReadPairs, observe_pairs
from policies.schema import TelemetryConfig

EXPOSITION_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4
"""Content type of :meth:`Metrics.exposition`."""


class LaneReading(msgspec.Struct, frozen=True, kw_only=True):
    """One lane now. ``device_s``, ``spilled`` and ``rejected`` (by code) count from the router's start."""

    weight: float
    active: int
    queued: int
    spilled: int
    rejected: Mapping[str, int]
    device_s: float


class EngineReading(msgspec.Struct, frozen=True, kw_only=True):
    """The engine since the router's start: hosts that were lost, requests that another host went on with."""

    restarts: int
    resumed: int


ReadEngine: TypeAlias = Callable[[], EngineReading]
ReadLanes: TypeAlias = Callable[[], Mapping[Lane, LaneReading]]
_Observe: TypeAlias = Callable[[CallbackOptions], Iterable[Observation]]


class Metrics:
    """The router's metrics, from the start to :meth:`shutdown`.

    Args:
        config: the service's name and, for the endpoint, its headers.
        endpoint: the full URL of a collector's OTLP/HTTP metrics receiver; None: metrics are only scraped.
    """

    def __init__(self, config: TelemetryConfig, endpoint: str | None) -> None:
        quieten()
        # Our own, for the library's default one has metrics of its process in it.
        self._registry = CollectorRegistry()
        readers: list[MetricReader] = [PrometheusMetricReader(scope_info_enabled=False, registry=self._registry)]
        if endpoint is not None:
            readers.append(_pushing(config, endpoint))
        self._provider = MeterProvider(
            readers,
            resource_of(config),
            # Its exit hook would wait for half a minute.
            shutdown_on_exit=False,
        )
        self._meter = self._provider.get_meter(names.SCOPE, version("opta-router"))
        self._open = True

    def observe_lanes(self, read: ReadLanes) -> None:
        """Serve the lanes' metrics from ``read``. Once.

        It is called on the event loop and on the sending thread, a few times for each collection: it must only read.
        """

        def gauge(name: str, unit: str, description: str, value: Callable[[LaneReading], float]) -> None:
            self._meter.create_observable_gauge(name, [_by_lane(read, value)], unit, description)

        def counter(name: str, unit: str, description: str, observe: _Observe) -> None:
            self._meter.create_observable_counter(name, [observe], unit, description)

        gauge(names.METRIC_QUEUE_DEPTH, "{request}", "Requests that wait for a slot.", lambda lane: lane.queued)
        gauge(names.METRIC_REQUESTS_ACTIVE, "{request}", "Requests that have a slot.", lambda lane: lane.active)
        # No unit: "1" would make it a ratio for Prometheus, and weights are not of one whole.
        gauge(names.METRIC_WEIGHT, "", "Share of device time while both lanes have work.", lambda lane: lane.weight)
        device_time = _by_lane(read, lambda lane: lane.device_s)
        counter(names.METRIC_DEVICE_TIME, "s", "Device time that the lane's steps took.", device_time)
        spills = _by_lane(read, lambda lane: lane.spilled)
        counter(names.METRIC_SPILLS, "{request}", "Requests that another lane took for this full one.", spills)
        counter(names.METRIC_REJECTIONS, "{request}", "Requests that were turned away.", _by_lane_and_code(read))

    def observe_engine(self, read: ReadEngine) -> None:
        """Serve the engine's metrics from ``read``, which must only read, as that of the lanes. Once."""

        def counter(name: str, unit: str, description: str, value: Callable[[EngineReading], int]) -> None:
            def observe(_options: CallbackOptions) -> Iterator[Observation]:
                yield Observation(value(read()))

            self._meter.create_observable_counter(name, [observe], unit, description)

        counter(names.METRIC_RESTARTS, "{restart}", "Hosts that were lost.", lambda engine: engine.restarts)
        resumed = "Times that a request went to another host, whose first had died."
        counter(names.METRIC_RESUMED, "{request}", resumed, lambda engine: engine.resumed)

    def observe_speculation(self, read: ReadPairs) -> None:
        """Serve every pair's metrics from ``read``, which must only read, as that of the lanes. Once."""
        observe_pairs(self._meter, read)

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format. Call on the event loop only: two collections must not interleave."""
        return generate_latest(self._registry)

    def shutdown(self) -> None:
        """Send what is left. Blocks for :data:`SHUTDOWN_S` at most, so keep it off the event loop. Safe to repeat."""
        if self._open:
            self._open = False
            self._provider.shutdown(timeout_millis=SHUTDOWN_S * 1e3)


def start_metrics(config: TelemetryConfig, environ: Mapping[str, str] = os.environ) -> Metrics:
    """Metrics as configured. Without an endpoint nothing is sent, and no thread started.

    Raises:
        ConfigError: the configured endpoint is not a URL.
    """
    return Metrics(config, signal_endpoint("metrics", config, environ))


def _pushing(config: TelemetryConfig, endpoint: str) -> MetricReader:
    # Only now, for it takes as long to import as all the rest of this module.
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter  # noqa: PLC0415

    exporter = OTLPMetricExporter(endpoint, headers=dict(config.otlp_headers), timeout=EXPORT_TIMEOUT_S)
    return PeriodicExportingMetricReader(exporter, export_timeout_millis=EXPORT_TIMEOUT_S * 1e3)


def _by_lane(read: ReadLanes, value: Callable[[LaneReading], float]) -> _Observe:
    def observe(_options: CallbackOptions) -> Iterator[Observation]:
        for lane, reading in read().items():
            yield Observation(value(reading), {names.ATTRIBUTE_LANE: lane})

    return observe


def _by_lane_and_code(read: ReadLanes) -> _Observe:
    def observe(_options: CallbackOptions) -> Iterator[Observation]:
        for lane, reading in read().items():
            for code, count in reading.rejected.items():
                yield Observation(count, {names.ATTRIBUTE_LANE: lane, names.ATTRIBUTE_CODE: code})

    return observe
