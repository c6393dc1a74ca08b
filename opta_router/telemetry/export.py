"""Spans on their way to a collector: OTLP over HTTP, from a thread of the SDK's.

Whatever the collector does, the event loop only ever appends to a bounded queue, and a shutdown is bounded, too: the
SDK's own would wait 30 s for a collector that does not answer.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Final

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ParentBased, Sampler, SamplingResult, TraceIdRatioBased
from opentelemetry.trace import Link, SpanKind, TraceState
from opentelemetry.util.types import Attributes

from opta_router.telemetry import facts, names
from opta_router.telemetry.quiet_logs import quieten
from opta_router.telemetry.resource import EXPORT_TIMEOUT_S, SHUTDOWN_S, resource_of
from opta_router.telemetry.spans import SpanTrace, parent_of
from opta_router.telemetry.tracing import NO_TRACE, RequestTrace, Tracing
from policies.schema import TelemetryConfig

MAX_QUEUED_SPANS: Final = 2048
MAX_ATTRIBUTE_CHARS: Final = 1024
"""Longer values are cut: header values and stop strings are as long as a client makes them."""


class OtlpTracing(Tracing):
    """Traces sent to ``endpoint``, the full URL of a collector's OTLP/HTTP trace receiver."""

    def __init__(self, config: TelemetryConfig, endpoint: str) -> None:
        quieten()
        # A header given here stands beside those of OTEL_EXPORTER_OTLP_HEADERS, and wins.
        exporter = OTLPSpanExporter(endpoint, headers=dict(config.otlp_headers), timeout=EXPORT_TIMEOUT_S)
        self._exporter = CountedExporter(exporter)
        self._processor = BoundedProcessor(self._exporter)
        self._provider = TracerProvider(
            sampler=sampler(config),
            resource=resource_of(config),
            # Its exit hook would wait without a deadline.
            shutdown_on_exit=False,
            span_limits=SpanLimits(max_attribute_length=MAX_ATTRIBUTE_CHARS),
        )
        self._provider.add_span_processor(self._processor)
        self._tracer = self._provider.get_tracer(names.SCOPE, version("opta-router"))
        self._closing: threading.Thread | None = None

    @property
    def enabled(self) -> bool:
        """See :class:`Tracing`."""
        return True

    @property
    def dropped_spans(self) -> int:
        """See :class:`Tracing`. Refused because the queue was full, or lost on the way."""
        return self._processor.refused + self._exporter.failed

    def request(
        self,
        *,
        method: str,
        route: str,
        headers: Mapping[str, str],
        scheme: str = "http",
        client_address: str | None = None,
        http_version: str = "1.1",
    ) -> RequestTrace:
        """See :class:`Tracing`."""
        begun_wall_ns = time.time_ns()
        server = self._tracer.start_span(
            f"{method} {route}",
            parent_of(headers),
            SpanKind.SERVER,
            facts.of_exchange(
                method=method,
                route=route,
                headers=headers,
                scheme=scheme,
                client_address=client_address,
                http_version=http_version,
            ),
            start_time=begun_wall_ns,
        )
        return SpanTrace(self._tracer, server, begun_wall_ns) if server.is_recording() else NO_TRACE

    def shutdown(self) -> bool:
        """See :class:`Tracing`."""
        if self._closing is None:
            self._closing = threading.Thread(target=self._provider.shutdown, name="opta-tracing-shutdown", daemon=True)
            self._closing.start()
        self._closing.join(SHUTDOWN_S)
        in_time = not self._closing.is_alive()
        self._exporter.close()
        return in_time


def sampler(config: TelemetryConfig) -> Sampler:
    """``sample_ratio`` decides for a new trace, and for a client's unless the client's own decision is trusted."""
    ours = _OwnDraw(config.sample_ratio)
    if config.trust_client_sampling:
        return ParentBased(ours)
    return ParentBased(ours, remote_parent_sampled=ours, remote_parent_not_sampled=ours)


class _OwnDraw(TraceIdRatioBased):
    """Draws afresh instead of looking at the trace id: a client that picks its ids must not pick what is kept."""

    _ids = RandomIdGenerator()

    def should_sample(  # noqa: PLR0917 - the SDK's signature
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        drawn = self._ids.generate_trace_id()
        return super().should_sample(parent_context, drawn, name, kind, attributes, links, trace_state)


class CountedExporter(SpanExporter):
    """Counts what goes through and what is lost; after :meth:`close` that is everything, at once.

    The two counters have one writer, the processor's thread.
    """

    def __init__(self, inner: SpanExporter) -> None:
        self._inner = inner
        self._lock = threading.Lock()
        self._closed = False
        self.taken = 0
        self.failed = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """On the processor's thread."""
        self.taken += len(spans)
        result = SpanExportResult.FAILURE
        try:
            result = self._inner.export(spans)
        finally:
            if result is not SpanExportResult.SUCCESS:
                self.failed += len(spans)
        return result

    def shutdown(self) -> None:
        """The SDK's word for :meth:`close`."""
        self.close()

    def close(self) -> None:
        """No more waiting between retries, no more batches."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._inner.shutdown()


class BoundedProcessor(BatchSpanProcessor):
    """Refuses a span, and counts it, where the SDK's queue would overflow, log a line and count nothing."""

    def __init__(self, exporter: CountedExporter) -> None:
        super().__init__(exporter, max_queue_size=MAX_QUEUED_SPANS)
        self._exporter = exporter
        self._accepted = 0
        self.refused = 0

    def on_end(self, span: ReadableSpan) -> None:
        """Never waits."""
        # What is accepted and not yet taken is never less than what is queued.
        if self._accepted - self._exporter.taken >= MAX_QUEUED_SPANS:
            self.refused += 1
            return
        self._accepted += 1
        super().on_end(span)
