"""Traces on their way to a collector: OTLP over HTTP, from a thread of the SDK's.

Whatever the collector does, the event loop only ever appends to a bounded queue, and a shutdown is bounded, too: the
SDK's own would wait 30 s for a collector that does not answer.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import Final, cast

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from opta_router.telemetry import facts, names
from opta_router.telemetry.quiet_logs import quieten
from opta_router.telemetry.resource import EXPORT_TIMEOUT_S, SHUTDOWN_S, resource_of
from opta_router.telemetry.sampling import Sampling
from opta_router.telemetry.spans import parent_of
from opta_router.telemetry.told import ToldTrace
from opta_router.telemetry.tracing import NO_TRACE, HttpRequest, RequestTrace, Tracing
from opta_router.version import VERSION
from policies.schema import TelemetryConfig

log = logging.getLogger(__name__)

MAX_QUEUED_TRACES: Final = 512
BATCH_TRACES: Final = 32
"""Sent together. Their encoding takes the interpreter from the event loop for a few milliseconds, so they are few."""


class OtlpTracing(Tracing):
    """Traces sent to ``endpoint``, the full URL of a collector's OTLP/HTTP trace receiver."""

    def __init__(self, config: TelemetryConfig, endpoint: str) -> None:
        quieten()
        # A header given here stands beside those of OTEL_EXPORTER_OTLP_HEADERS, and wins.
        exporter = OTLPSpanExporter(endpoint, headers=dict(config.otlp_headers), timeout=EXPORT_TIMEOUT_S)
        self._exporter = TraceExporter(exporter, resource_of(config))
        self._queue = TraceQueue(self._exporter)
        self._sampling = Sampling(config, time.monotonic)
        self._records_content = config.record_content
        self._closing: threading.Thread | None = None

    @property
    def enabled(self) -> bool:
        """See :class:`Tracing`."""
        return True

    @property
    def dropped_traces(self) -> int:
        """See :class:`Tracing`. Beyond the rate, refused because the queue was full, or lost on the way."""
        return self._sampling.beyond_rate + self._queue.refused + self._exporter.failed

    def request(self, http: HttpRequest) -> RequestTrace:
        """See :class:`Tracing`."""
        parent = parent_of(http.headers)
        if not self._sampling.wants(parent):
            return NO_TRACE
        name, known = f"{http.method} {http.route}", facts.of_http(http)
        return ToldTrace(name, known, parent, self._queue.put, records_content=self._records_content)

    def shutdown(self) -> bool:
        """See :class:`Tracing`."""
        if self._closing is None:
            self._closing = threading.Thread(target=self._queue.shutdown, name="opta-tracing-shutdown", daemon=True)
            self._closing.start()
        self._closing.join(SHUTDOWN_S)
        in_time = not self._closing.is_alive()
        self._exporter.close()
        return in_time


class TraceExporter(SpanExporter):
    """Makes the spans of whole traces and sends them; counts traces that are taken, and those that are lost.

    After :meth:`close` that is every one, at once. The two counters have one writer, the queue's thread.
    """

    def __init__(self, inner: SpanExporter, resource: Resource) -> None:
        self._inner = inner
        self._resource = resource
        self._scope = InstrumentationScope(names.SCOPE, VERSION)
        self._lock = threading.Lock()
        self._closed = False
        self.taken = 0
        self.failed = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """On the queue's thread. What comes are traces: see :meth:`TraceQueue.put`."""
        traces = cast(Sequence[ToldTrace], spans)
        self.taken += len(traces)
        sent = 0
        try:
            made = [found for trace in traces if (found := self._spans(trace))]
            if self._inner.export([span for found in made for span in found]) is SpanExportResult.SUCCESS:
                sent = len(made)
        finally:
            self.failed += len(traces) - sent
        return SpanExportResult.SUCCESS if sent == len(traces) else SpanExportResult.FAILURE

    def _spans(self, trace: ToldTrace) -> list[ReadableSpan]:
        try:
            return trace.spans(self._resource, self._scope)
        except Exception:
            log.exception("a trace could not be made")
            return []

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


class TraceQueue(BatchSpanProcessor):
    """The SDK's queue and its thread, for whole traces instead of spans.

    Where the SDK's queue would overflow, log a line and count nothing, it refuses a trace and counts it.
    """

    def __init__(self, exporter: TraceExporter) -> None:
        super().__init__(exporter, max_queue_size=MAX_QUEUED_TRACES, max_export_batch_size=BATCH_TRACES)
        self._exporter = exporter
        self._accepted = 0
        self.refused = 0

    def put(self, trace: ToldTrace) -> None:
        """Never waits."""
        # What is accepted and not yet taken is never less than what is queued.
        if self._accepted - self._exporter.taken >= MAX_QUEUED_TRACES:
            self.refused += 1
            return
        self._accepted += 1
        # All that the SDK asks of it before it comes to the exporter is whether its context is sampled.
        self.on_end(cast(ReadableSpan, trace))
