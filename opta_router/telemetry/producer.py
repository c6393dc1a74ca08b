"""Our own histograms on their way out, beside what the MeterProvider collects: pushed and scraped.

OpenTelemetry calls this a metric producer, and the Python SDK has no hook for one. Its exporters take its public data
model, and Prometheus' registry takes collectors, so both ends have one here. The SDK's own reader for Prometheus
leaves examples of a bucket's values (exemplars) out; this one has them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

from opentelemetry.sdk.metrics import Exemplar
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    HistogramDataPoint,
    MetricExporter,
    MetricExportResult,
    MetricsData,
    ResourceMetrics,
    ScopeMetrics,
)
from opentelemetry.sdk.metrics.export import Histogram as HistogramData
from opentelemetry.sdk.metrics.export import Metric as MetricData
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar as PrometheusExemplar

from opta_router.telemetry.histograms import Buckets, Example, Histogram
from opta_router.telemetry.tally import Tally

_ABOVE_ALL: Final = "+Inf"


class ProducingExporter(MetricExporter):
    """Pushes what the MeterProvider collected and the histograms together, and counts the points that were lost.

    Everything is cumulative, whatever the environment prefers.
    """

    def __init__(self, inner: MetricExporter, tally: Tally) -> None:
        super().__init__()
        self._inner = inner
        self._tally = tally
        self._begun_ns = time.time_ns()
        self.lost_points = 0

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> MetricExportResult:
        """On the reader's thread."""
        data = self._with_histograms(metrics_data)
        result = MetricExportResult.FAILURE
        try:
            result = self._inner.export(data, timeout_millis, **kwargs)
        finally:
            if result is not MetricExportResult.SUCCESS:
                self.lost_points += _points(data)
        return result

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        """See the SDK's."""
        return self._inner.force_flush(timeout_millis)

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        """See the SDK's."""
        self._inner.shutdown(timeout_millis, **kwargs)

    def _with_histograms(self, data: MetricsData) -> MetricsData:
        now_ns = time.time_ns()
        found = [
            _metric(histogram, self._begun_ns, now_ns) for histogram in self._tally.histograms() if histogram.in_use()
        ]
        if not found or not data.resource_metrics:
            return data
        # Into the scope that is there: of two with one name, the encoder keeps the last.
        resource, *other_resources = data.resource_metrics
        scope, *other_scopes = resource.scope_metrics
        ours = ScopeMetrics(scope.scope, [*scope.metrics, *found], scope.schema_url)
        whole = ResourceMetrics(resource.resource, [ours, *other_scopes], resource.schema_url)
        return MetricsData([whole, *other_resources])


def _metric(histogram: Histogram, begun_ns: int, now_ns: int) -> MetricData:
    metric = histogram.metric
    points = [
        HistogramDataPoint(
            attributes={
                name: value for name, value in zip(metric.attributes, labels, strict=True) if value is not None
            },
            start_time_unix_nano=begun_ns,
            time_unix_nano=now_ns,
            count=sum(buckets.counts),
            sum=buckets.total,
            bucket_counts=buckets.counts,
            explicit_bounds=metric.bounds,
            # Of a sum since the start they say nothing, and the encoder leaves them out.
            min=None,  # type: ignore[arg-type]
            max=None,  # type: ignore[arg-type]
            exemplars=[_exemplar(example) for example in buckets.examples if example is not None],
        )
        for labels, buckets in histogram.in_use()
    ]
    data = HistogramData(points, AggregationTemporality.CUMULATIVE)
    return MetricData(metric.name, metric.description, metric.unit, data)


def _exemplar(example: Example) -> Exemplar:
    return Exemplar({}, example.value, example.time_ns, example.identity.span_id, example.identity.trace_id)


def _points(data: MetricsData) -> int:
    return sum(
        len(metric.data.data_points)
        for of_resource in data.resource_metrics
        for of_scope in of_resource.scope_metrics
        for metric in of_scope.metrics
    )


class HistogramCollector(Collector):
    """The histograms for Prometheus. Their exemplars are seen by who accepts OpenMetrics."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """See Prometheus' client."""
        for histogram in self._tally.histograms():
            metric = histogram.metric
            family = HistogramMetricFamily(
                metric.prometheus_name,
                metric.description,
                labels=[name.replace(".", "_") for name in metric.attributes],
                unit="seconds",
            )
            for labels, buckets in histogram.series.items():
                values = [value or "" for value in labels]  # Prometheus' word for a label that is not there
                family.add_metric(values, _cumulative(metric.bounds, buckets), buckets.total)
            yield family


def _cumulative(
    bounds: Sequence[float], buckets: Buckets
) -> list[tuple[str, float] | tuple[str, float, PrometheusExemplar]]:
    found: list[tuple[str, float] | tuple[str, float, PrometheusExemplar]] = []
    below = 0
    for bound, count, example in zip((*bounds, _ABOVE_ALL), buckets.counts, buckets.examples, strict=True):
        below += count
        found.append((str(bound), below) if example is None else (str(bound), below, _for_prometheus(example)))
    return found


def _for_prometheus(example: Example) -> PrometheusExemplar:
    labels = {"trace_id": f"{example.identity.trace_id:032x}", "span_id": f"{example.identity.span_id:016x}"}
    return PrometheusExemplar(labels, example.value, example.time_ns / 1e9)
