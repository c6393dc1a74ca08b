"""Traces and metrics, ended together."""

import threading

from opta_router.telemetry.recorder import start_recorder
from policies.schema import Config, TelemetryConfig
from tests.unit.telemetry import lives


def test_what_is_left_at_the_end_is_sent_once_however_often_it_is_told_to(collector):
    recorder = start_recorder(Config(telemetry=TelemetryConfig(otlp_endpoint=collector.endpoint)))
    trace = lives.begin(recorder)
    lives.to_first_token(trace)
    trace.finished(lives.ending())
    trace.responded(200)
    recorder.close()
    recorder.close()
    recorder.shutdown()
    recorder.shutdown()
    assert {path for path, _ in collector.requests} == {"/v1/traces", "/v1/metrics"}
    assert len(collector.requests) == 2
    assert len(collector.spans) == 4
    assert "gen_ai.server.request.duration" in {point.name for point in collector.points}
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("opta-")]


def test_a_disabled_sdk_records_nothing(collector):
    config = Config(telemetry=TelemetryConfig(otlp_endpoint=collector.endpoint))
    recorder = start_recorder(config, environ={"OTEL_SDK_DISABLED": "true"})
    lives.begin(recorder).responded(200)
    recorder.shutdown()
    assert collector.requests == []
    assert sum(recorder.metrics.tally.reading().requests.values()) == 0
