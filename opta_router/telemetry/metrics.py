"""Metrics: one provider, read by whoever scrapes ``GET /metrics`` and, with an endpoint, sent over OTLP."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricExporter, MetricReader, PeriodicExportingMetricReader
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.openmetrics import exposition as openmetrics

from opta_router.telemetry import names
from opta_router.telemetry.instruments import Instruments
from opta_router.telemetry.producer import HistogramCollector, ProducingExporter
from opta_router.telemetry.quiet_logs import quieten
from opta_router.telemetry.resource import EXPORT_INTERVAL_S, EXPORT_TIMEOUT_S, SHUTDOWN_S, resource_of
from opta_router.telemetry.setup import signal_endpoint
from opta_router.telemetry.tally import Tally
from opta_router.version import VERSION
from policies.schema import TelemetryConfig

PLAIN: Final = CONTENT_TYPE_PLAIN_0_0_4
OPENMETRICS: Final = openmetrics.CONTENT_TYPE_LATEST


class Metrics:
    """The router's metrics, from the start to :meth:`shutdown`. ``observe`` has what they are read from.

    Args:
        config: the service's name and, for the endpoint, its headers.
        endpoint: the full URL of a collector's OTLP/HTTP metrics receiver; None: metrics are only scraped.
        tally: the requests'.
    """

    def __init__(self, config: TelemetryConfig, endpoint: str | None, tally: Tally) -> None:
        quieten()
        self.tally = tally
        # Our own, for the library's default one has metrics of its process in it.
        self._registry = CollectorRegistry()
        readers: list[MetricReader] = [PrometheusMetricReader(scope_info_enabled=False, registry=self._registry)]
        self._registry.register(HistogramCollector(tally))
        self._exporter: ProducingExporter | None = None
        if endpoint is not None:
            self._exporter = _exporter(config, endpoint, tally)
            readers.append(_pushing(self._exporter))
        self._provider = MeterProvider(
            readers,
            resource_of(config),
            # Its exit hook would wait for half a minute.
            shutdown_on_exit=False,
        )
        self.observe = Instruments(self._provider.get_meter(names.SCOPE, VERSION))
        self.observe.of_requests(tally)
        self._open = True

    @property
    def dropped_points(self) -> int:
        """Points that were to be sent and did not arrive, since the start."""
        return self._exporter.lost_points if self._exporter is not None else 0

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """All metrics as text, and its content type: OpenMetrics, with exemplars, for who accepts it; or Prometheus'.

        Call on the event loop only: two collections must not interleave.
        """
        if "application/openmetrics-text" in accept:
            text: bytes = openmetrics.generate_latest(self._registry)  # type: ignore[no-untyped-call]
            return text, OPENMETRICS
        return generate_latest(self._registry), PLAIN

    def shutdown(self) -> None:
        """Send what is left. Blocks for :data:`SHUTDOWN_S` at most, so keep it off the event loop. Safe to repeat."""
        if self._open:
            self._open = False
            self._provider.shutdown(timeout_millis=SHUTDOWN_S * 1e3)


def start_metrics(config: TelemetryConfig, tally: Tally, environ: Mapping[str, str] = os.environ) -> Metrics:
    """Metrics as configured. Without an endpoint nothing is sent, and no thread started.

    Raises:
        ConfigError: the configured endpoint is not a URL.
    """
    return Metrics(config, signal_endpoint("metrics", config, environ), tally)


def _exporter(config: TelemetryConfig, endpoint: str, tally: Tally) -> ProducingExporter:
    # Only now, for it takes as long to import as all the rest of this module.
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter  # noqa: PLC0415

    exporter = OTLPMetricExporter(endpoint, headers=dict(config.otlp_headers), timeout=EXPORT_TIMEOUT_S)
    return ProducingExporter(exporter, tally)


def _pushing(exporter: MetricExporter) -> MetricReader:
    # None: as OTEL_METRIC_EXPORT_INTERVAL says.
    interval_ms = None if "OTEL_METRIC_EXPORT_INTERVAL" in os.environ else EXPORT_INTERVAL_S * 1e3
    return PeriodicExportingMetricReader(exporter, interval_ms, export_timeout_millis=EXPORT_TIMEOUT_S * 1e3)
