"""Where traces and metrics go, if anywhere."""

import subprocess
import sys

import pytest

from opta_router.telemetry.setup import signal_endpoint
from policies.errors import ConfigError
from policies.schema import TelemetryConfig

BASE, TRACES = "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
METRICS = "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT"


@pytest.mark.parametrize(
    ("configured", "environ", "endpoint"),
    [
        (None, {}, None),
        (None, {BASE: "", TRACES: " "}, None),
        ("http://c:4318", {}, "http://c:4318/v1/traces"),
        ("http://c:4318/", {}, "http://c:4318/v1/traces"),
        ("http://c:4318/otlp?tenant=a", {}, "http://c:4318/otlp/v1/traces?tenant=a"),
        ("http://c:4318/v1/traces", {}, "http://c:4318/v1/traces"),
        (None, {BASE: "https://c/otlp/"}, "https://c/otlp/v1/traces"),
        (None, {TRACES: "http://c/spans"}, "http://c/spans"),
        (None, {BASE: "http://base", TRACES: "http://c/spans"}, "http://c/spans"),
        ("http://ours", {BASE: "http://base", TRACES: "http://c/spans"}, "http://ours/v1/traces"),
        ("http://ours", {"OTEL_SDK_DISABLED": "True"}, None),
    ],
)
def test_the_configuration_wins_and_a_base_gets_the_path(configured, environ, endpoint):
    assert signal_endpoint("traces", TelemetryConfig(otlp_endpoint=configured), environ) == endpoint


@pytest.mark.parametrize(
    ("configured", "environ", "endpoint"),
    [
        ("http://c:4318", {}, "http://c:4318/v1/metrics"),
        ("http://c:4318/v1/traces", {}, "http://c:4318/v1/metrics"),
        ("http://c:4318/v1/metrics", {}, "http://c:4318/v1/metrics"),
        (None, {BASE: "https://c/otlp/"}, "https://c/otlp/v1/metrics"),
        (None, {METRICS: "http://c/points", TRACES: "http://c/spans"}, "http://c/points"),
        (None, {TRACES: "http://c/spans"}, None),
        ("http://ours", {"OTEL_SDK_DISABLED": "True"}, None),
    ],
)
def test_metrics_go_to_the_same_base_under_a_path_of_their_own(configured, environ, endpoint):
    assert signal_endpoint("metrics", TelemetryConfig(otlp_endpoint=configured), environ) == endpoint


@pytest.mark.parametrize("url", ["collector:4317", "grpc://c", "http://", "http://["])
def test_an_environment_without_a_usable_url_is_named_and_no_traces_are_sent(caplog, url):
    assert signal_endpoint("traces", TelemetryConfig(), {BASE: url}) is None
    assert [BASE in message for message in caplog.messages] == [True]


def test_a_configured_endpoint_that_is_no_url_is_the_operators_error():
    with pytest.raises(ConfigError, match=r"telemetry\.otlp_endpoint"):
        signal_endpoint("traces", TelemetryConfig(otlp_endpoint="http://["), {})


def test_without_an_endpoint_nothing_is_imported_and_no_thread_started():
    program = """
import sys, threading
from opta_router.telemetry import HttpRequest, start_tracing
from policies.schema import TelemetryConfig
tracing = start_tracing(TelemetryConfig())
tracing.request(HttpRequest("POST", "/", {})).responded(200)
tracing.shutdown()
print([name for name in sys.modules if name.startswith("opentelemetry")], threading.active_count())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout, done.stderr) == ("[] 1\n", "")
