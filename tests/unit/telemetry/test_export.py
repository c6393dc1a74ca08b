"""Spans on the wire, and collectors that do not take them."""

import gc
import logging
import subprocess
import sys
import threading
from importlib.metadata import version

import msgspec
import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from lanes import wire
from opta_router.request import GenerationRequest
from opta_router.telemetry import NO_TRACE, start_tracing
from opta_router.telemetry.export import BATCH_TRACES, MAX_QUEUED_TRACES, TraceExporter, TraceQueue
from opta_router.telemetry.quiet_logs import LOGGERS
from opta_router.telemetry.span_data import MAX_ATTRIBUTE_CHARS
from opta_router.telemetry.told import ToldTrace
from policies.quantities import Secret
from policies.schema import TelemetryConfig
from tests.otlp import black_hole, refusing
from tests.unit.telemetry import lives

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-"


def sending_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith(("OtelBatch", "opta-tracing"))]


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_spans_arrive_with_the_service_and_the_configured_headers(collector, monkeypatch, compression):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", compression)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-from=environment,x-both=environment")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    headers = {"x-key": Secret("k"), "X-Both": Secret("configuration")}
    tracing = start_tracing(TelemetryConfig(otlp_endpoint=collector.endpoint, otlp_headers=headers))
    lives.begin(tracing).responded(200)
    (span,) = collector.wait_for(len)
    assert tracing.shutdown()
    assert tracing.shutdown()
    assert span.resource["service.name"] == "opta-router"
    assert span.resource["service.version"] == version("opta-router")
    ((path, sent),) = collector.requests
    assert path == "/v1/traces"
    assert sent.get("content-encoding", "none") == compression
    assert (sent["x-key"], sent["x-from"], sent["x-both"]) == ("k", "environment", "configuration")
    assert tracing.dropped_traces == 0
    assert sending_threads() == []


def test_a_long_value_is_cut(tracing, collector):
    lives.begin(tracing, user_agent="x" * 10_000).responded(200)
    tracing.shutdown()
    (span,) = collector.spans
    assert span.attributes["user_agent.original"] == "x" * MAX_ATTRIBUTE_CHARS


@pytest.mark.parametrize(
    ("trusted", "ratio", "flags", "recorded"),
    [
        (False, 1.0, None, True),
        (False, 0.0, None, False),
        (False, 1.0, "00", True),
        (False, 0.0, "01", False),
        (True, 1.0, "00", False),
        (True, 0.0, "01", True),
        (True, 0.0, None, False),
    ],
)
def test_a_clients_sampling_counts_only_if_trusted(collector, trusted, ratio, flags, recorded):
    config = TelemetryConfig(otlp_endpoint=collector.endpoint, trust_client_sampling=trusted, sample_ratio=ratio)
    tracing = start_tracing(config)
    trace = lives.begin(tracing, **({} if flags is None else {"traceparent": PARENT + flags}))
    lives.to_first_token(trace)
    trace.finished(lives.ending())
    trace.responded(200)
    assert tracing.shutdown()
    assert len(collector.spans) == (4 if recorded else 0)


def test_a_client_cannot_choose_a_trace_id_that_is_always_kept(collector):
    tracing = start_tracing(TelemetryConfig(otlp_endpoint=collector.endpoint, sample_ratio=0.5, max_traces_per_s=1000))
    lowest = f"00-{1:032x}-{1:016x}-01"
    traces = [lives.begin(tracing, traceparent=lowest) for _ in range(200)]
    kept = sum(trace is not NO_TRACE for trace in traces)
    for trace in traces:
        trace.responded(200)
    assert tracing.shutdown()
    assert 0 < kept < 200


@pytest.mark.timeout(30)
def test_a_collector_that_refuses_costs_counted_spans_and_one_line(caplog, fresh_limit):
    caplog.set_level(logging.WARNING)
    with refusing() as endpoint:
        tracing = start_tracing(TelemetryConfig(otlp_endpoint=endpoint))
        for _ in range(20):
            lives.begin(tracing).responded(200)
        tracing.shutdown()
        for thread in sending_threads():
            thread.join()
    assert tracing.dropped_traces == 20
    assert len([record for record in caplog.records if record.name in LOGGERS]) == 1


@pytest.mark.timeout(60)
def test_a_collector_that_never_answers_holds_up_neither_shutdown_nor_exit():
    # Many batches: the SDK's own shutdown would wait for each of them.
    program = f"""
import sys
from opta_router.telemetry import HttpRequest, start_tracing
from policies.schema import TelemetryConfig
tracing = start_tracing(TelemetryConfig(otlp_endpoint=sys.argv[1], max_traces_per_s=10_000))
for _ in range({MAX_QUEUED_TRACES}):
    tracing.request(HttpRequest("POST", "/", {{}})).responded(200)
print(tracing.shutdown())
"""
    with black_hole() as endpoint:
        command = [sys.executable, "-c", program, endpoint]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=50)
    assert (done.returncode, done.stdout) == (0, "False\n")
    assert "Traceback" not in done.stderr


class Stuck(SpanExporter):
    """Takes nothing until it is released."""

    def __init__(self):
        self.released = threading.Event()
        self.exported = 0

    def export(self, spans):
        self.released.wait()
        self.exported += len(spans)
        return SpanExportResult.SUCCESS


def ended(queue):
    """A request that is over, in the queue if there is room."""
    trace = ToldTrace("server", {}, None, queue.put)
    trace.responded(200)
    return trace


def test_a_full_queue_refuses_and_counts_and_says_nothing(caplog, fresh_limit):
    stuck = Stuck()
    exporter = TraceExporter(stuck, Resource({}))
    queue = TraceQueue(exporter)
    for _ in range(MAX_QUEUED_TRACES + 100):
        ended(queue)
    refused = queue.refused
    stuck.released.set()
    queue.shutdown()
    # The one batch in the exporter's hands is not in the queue.
    assert 100 - BATCH_TRACES <= refused <= 100
    assert stuck.exported == MAX_QUEUED_TRACES + 100 - refused
    assert exporter.failed == 0
    assert caplog.messages == []


def test_an_exporter_that_raises_loses_its_batch_and_no_other(caplog, fresh_limit):
    class Raising(Stuck):
        def export(self, spans):
            super().export(spans)
            if self.exported == 1:
                raise RuntimeError("once")
            return SpanExportResult.SUCCESS

    raising = Raising()
    raising.released.set()
    exporter = TraceExporter(raising, Resource({}))
    queue = TraceQueue(exporter)
    ended(queue)
    queue.force_flush()
    ended(queue)
    queue.shutdown()
    assert (exporter.taken, exporter.failed) == (2, 1)


def test_a_trace_that_cannot_be_made_loses_itself_alone(caplog, fresh_limit):
    exporter = TraceExporter(released := Stuck(), Resource({}))
    released.released.set()
    queue = TraceQueue(exporter)
    spoilt = ToldTrace("server", {"not.a.value": object()}, None, queue.put)
    spoilt.responded(200)
    ended(queue)
    queue.shutdown()
    assert (exporter.taken, exporter.failed, released.exported) == (2, 1, 1)
    assert caplog.messages == ["a trace could not be made"]


def test_of_more_requests_than_the_rate_some_are_traced_and_the_others_counted(collector):
    tracing = start_tracing(TelemetryConfig(otlp_endpoint=collector.endpoint, max_traces_per_s=0.01))
    first = lives.begin(tracing)
    others = [lives.begin(tracing) for _ in range(5)]
    assert first is not NO_TRACE
    assert others == [NO_TRACE] * 5
    assert tracing.dropped_traces == 5
    first.responded(200)
    assert tracing.shutdown()
    assert len(collector.spans) == 1


def test_a_trace_that_waits_holds_nothing_of_the_prompt():
    trace = ToldTrace("server", {}, None, lambda _: None)
    prompt = wire.TextPrompt("x" * 1000)
    lives.classify(trace, request=msgspec.structs.replace(lives.REQUEST, prompt=prompt))
    assert not [kept for kept in gc.get_referrers(prompt) if isinstance(kept, GenerationRequest)]
