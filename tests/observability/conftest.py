"""A router that was idle, worked, and was idle again, as its databases saw it."""

from __future__ import annotations

import time
from dataclasses import dataclass

import pytest

from tests.e2e.router_process import RouterProcess, router
from tests.observability.databases import Database, prometheus, victoria_metrics
from tests.observability.load import CONFIG, work
from tests.otlp import Collector, collecting

WINDOW_S = 4
"""What `$__rate_interval` stands for: several scrapes."""


@dataclass(frozen=True)
class Observed:
    """Times are of the wall clock, in seconds."""

    running: RouterProcess
    databases: dict[str, Database]
    collector: Collector
    idle_s: float
    begun_s: float
    ended_s: float
    idle_again_s: float

    @property
    def variables(self) -> dict[str, str]:
        """Grafana's, and all values of the dashboards' own."""
        return {
            "lane": ".*",
            "model": ".*",
            "slower_than": "100ms",
            "__rate_interval": f"{WINDOW_S}s",
            "__interval": "1s",
            "__range": f"{round(self.ended_s - self.begun_s)}s",
        }


@pytest.fixture(scope="session")
def observed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("observed")
    with collecting() as collector, victoria_metrics(folder / "pushed") as pushed:
        environment = {
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{collector.endpoint}/v1/traces",
            "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": f"{pushed.url}/opentelemetry/v1/metrics",
            "OTEL_METRIC_EXPORT_INTERVAL": "1000",
            "OTEL_BSP_SCHEDULE_DELAY": "200",
        }
        with (
            router(folder, CONFIG, environment) as running,
            prometheus(folder / "scraped", running.url.removeprefix("http://")) as scraped,
        ):
            idle_s = time.time()
            time.sleep(WINDOW_S)
            begun_s = time.time()
            work(running)
            # What was counted last is scraped and pushed.
            time.sleep(2)
            ended_s = time.time()
            # Longer than a window, so that no rate has any of the work in it.
            time.sleep(WINDOW_S + 2)
            databases = {"scraped": scraped, "pushed": pushed}
            yield Observed(running, databases, collector, idle_s, begun_s, ended_s, time.time())
