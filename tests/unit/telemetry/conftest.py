import logging
import os

import pytest

from opta_router.telemetry import quiet_logs, start_tracing
from policies.schema import TelemetryConfig
from tests.otlp import collecting


@pytest.fixture(autouse=True)
def no_telemetry_of_the_machine(monkeypatch):
    for name in os.environ:
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def fresh_limit(monkeypatch):
    """A limit on telemetry's loggers that has let nothing through yet."""
    for name in quiet_logs.LOGGERS:
        monkeypatch.setattr(logging.getLogger(name), "filters", [])
    monkeypatch.setattr(quiet_logs, "shared", quiet_logs.OncePerInterval())


@pytest.fixture
def collector():
    with collecting() as running:
        yield running


@pytest.fixture
def tracing(collector):
    running = start_tracing(TelemetryConfig(otlp_endpoint=collector.endpoint))
    yield running
    assert running.shutdown()
