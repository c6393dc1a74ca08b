"""Collectors for tests: one that takes spans and metrics over OTLP/HTTP, one that refuses, one that never answers."""

import gzip
import http.server
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1 import metrics_pb2
from opentelemetry.proto.trace.v1 import trace_pb2

KINDS = {1: "INTERNAL", 2: "SERVER", 3: "CLIENT", 4: "PRODUCER", 5: "CONSUMER"}
STATUSES = {0: "UNSET", 1: "OK", 2: "ERROR"}


@dataclass(frozen=True)
class Event:
    """Something that happened in a span. `time_ns` since the epoch."""

    name: str
    time_ns: int
    attributes: dict[str, Any]


@dataclass(frozen=True)
class Span:
    """A span off the wire. Ids in hex, "" for none; attributes have the Python type of their type on the wire."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int
    status: str
    status_message: str
    trace_state: str
    attributes: dict[str, Any]
    events: tuple[Event, ...]
    links: tuple[str, ...]
    resource: dict[str, Any]


@dataclass(frozen=True)
class Point:
    """A number off the wire. `kind` is `counter` (cumulative, monotonic), `gauge` or `histogram` (cumulative).

    Of a histogram `value` is the count; `buckets` has each bucket's upper bound, the last one's infinite, with its own
    count; `exemplars` are trace ids in hex.
    """

    name: str
    kind: str
    unit: str
    attributes: dict[str, Any]
    value: float
    resource: dict[str, Any]
    buckets: tuple[tuple[float, int], ...] = ()
    total: float = 0.0
    exemplars: tuple[str, ...] = ()


@dataclass
class Collector:
    """What has arrived, and the endpoint to send it to. `requests` holds each request's path and headers."""

    endpoint: str
    spans: list[Span] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def wait_for(self, predicate: Callable[[list[Span]], bool], timeout_s: float = 20.0) -> list[Span]:
        """The spans, once `predicate` holds for them.

        Raises:
            TimeoutError: it does not hold after `timeout_s`.
        """
        with self.changed:
            if not self.changed.wait_for(lambda: predicate(self.spans), timeout_s):
                raise TimeoutError(f"only {[span.name for span in self.spans]} arrived")
            return list(self.spans)

    def named(self, name: str) -> list[Span]:
        """The spans of this name, in the order in which they began."""
        with self.changed:
            return sorted((span for span in self.spans if span.name == name), key=lambda span: span.start_ns)

    def one(self, name: str) -> Span:
        """The only span of this name."""
        (span,) = self.named(name)
        return span

    def children(self, parent: Span) -> list[str]:
        """Names of the spans right under `parent`, in the order in which they began."""
        with self.changed:
            found = [span for span in self.spans if span.parent_id == parent.span_id]
        return [span.name for span in sorted(found, key=lambda span: span.start_ns)]


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector on a free loopback port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            spans, points, response = [], [], ExportTraceServiceResponse()
            if self.path.endswith("/v1/metrics"):
                points = list(_points(ExportMetricsServiceRequest.FromString(body)))
                response = ExportMetricsServiceResponse()
            else:
                spans = list(_spans(ExportTraceServiceRequest.FromString(body)))
            with collector.changed:
                collector.requests.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
                collector.spans += spans
                collector.points += points
                collector.changed.notify_all()
            answer = response.SerializeToString()
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector = Collector(f"http://127.0.0.1:{server.server_address[1]}")
        # A kept-alive connection's handler reads until the client closes, and closing the server would wait for it.
        server.block_on_close = False
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def refusing() -> Iterator[str]:
    """An endpoint that refuses connections, and that nobody else can take meanwhile."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


@contextmanager
def black_hole() -> Iterator[str]:
    """An endpoint that takes connections and whatever is sent, and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@contextmanager
def slow(delay_s: float = 1.0) -> Iterator[str]:
    """An endpoint that takes everything, and answers each request so much later."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            time.sleep(delay_s)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads, server.block_on_close = True, False
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def _spans(request: ExportTraceServiceRequest) -> Iterator[Span]:
    for group in request.resource_spans:
        resource = _attributes(group.resource.attributes)
        for scope in group.scope_spans:
            for span in scope.spans:
                yield _span(span, resource)


def _span(span: trace_pb2.Span, resource: dict[str, Any]) -> Span:
    return Span(
        name=span.name,
        kind=KINDS[span.kind],
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        status=STATUSES[span.status.code],
        status_message=span.status.message,
        trace_state=span.trace_state,
        attributes=_attributes(span.attributes),
        events=tuple(Event(event.name, event.time_unix_nano, _attributes(event.attributes)) for event in span.events),
        links=tuple(link.span_id.hex() for link in span.links),
        resource=resource,
    )


def _points(request: ExportMetricsServiceRequest) -> Iterator[Point]:
    for group in request.resource_metrics:
        resource = _attributes(group.resource.attributes)
        for scope in group.scope_metrics:
            for metric in scope.metrics:
                kind, data = _numbers(metric)
                for point in data.data_points:
                    attributes = _attributes(point.attributes)
                    if kind == "histogram":
                        yield _histogram(metric, point, attributes, resource)
                    else:
                        value = getattr(point, point.WhichOneof("value"))
                        yield Point(metric.name, kind, metric.unit, attributes, value, resource)


def _histogram(metric: metrics_pb2.Metric, point: Any, attributes: dict[str, Any], resource: dict[str, Any]) -> Point:
    if sum(point.bucket_counts) != point.count:
        raise ValueError(f"{metric.name}: {point.count} values, and {list(point.bucket_counts)} in its buckets")
    bounds = [*point.explicit_bounds, float("inf")]
    return Point(
        metric.name,
        "histogram",
        metric.unit,
        attributes,
        point.count,
        resource,
        tuple(zip(bounds, point.bucket_counts, strict=True)),
        point.sum,
        tuple(exemplar.trace_id.hex() for exemplar in point.exemplars),
    )


def _numbers(metric: metrics_pb2.Metric) -> tuple[str, Any]:
    kind = metric.WhichOneof("data")
    if kind == "gauge":
        return "gauge", metric.gauge
    data = metric.histogram if kind == "histogram" else metric.sum
    if data.aggregation_temporality != 2 or not (kind == "histogram" or data.is_monotonic):
        raise ValueError(f"{metric.name} is not cumulative")
    return ("histogram" if kind == "histogram" else "counter"), data


def _attributes(pairs: Any) -> dict[str, Any]:
    attributes: dict[str, Any] = {}
    pair: KeyValue
    for pair in pairs:
        if pair.key in attributes:
            raise ValueError(f"{pair.key} is there twice")
        attributes[pair.key] = _value(pair.value)
    return attributes


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    return getattr(value, kind) if kind else None
