"""A real Prometheus and a real VictoriaMetrics, and how to ask them.

The first scrapes, the second is pushed to: Debian's Prometheus is built without its OTLP receiver.
"""

from __future__ import annotations

import math
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.e2e.processes import eventually
from tests.observability.fetched import debian

SCRAPE_CONFIG = """
global: {{scrape_interval: 1s, scrape_timeout: 1s}}
scrape_configs:
  - job_name: opta_router
    static_configs: [{{targets: ['{target}']}}]
"""


class QueryFailed(Exception):
    """The database says that an expression is none."""


@dataclass(frozen=True)
class Series:
    """Labels, and the samples in order."""

    labels: dict[str, str]
    values: list[float]

    @property
    def has_nan(self) -> bool:
        return any(math.isnan(value) for value in self.values)


class Database:
    """What both speak: Prometheus' HTTP API at `url`."""

    def __init__(self, url: str) -> None:
        self.url = url

    def over(self, query: str, start_s: float, end_s: float) -> list[Series]:
        """A range query, a sample a second."""
        window = {"query": query, "start": f"{start_s:.3f}", "end": f"{end_s:.3f}", "step": "1"}
        return [
            Series(result["metric"], [float(value) for _at, value in result["values"]])
            for result in self._ask("/api/v1/query_range", window)["result"]
        ]

    def names(self, label: str, match: str = "") -> set[str]:
        """Values of a label."""
        params = {"match[]": match} if match else {}
        return set(self._ask(f"/api/v1/label/{label}/values", params))

    def exemplars(self, query: str, start_s: float, end_s: float) -> list[dict[str, str]]:
        """Labels of the exemplars of the series in a query."""
        window = {"query": query, "start": f"{start_s:.3f}", "end": f"{end_s:.3f}"}
        found = self._ask("/api/v1/query_exemplars", window)
        return [exemplar["labels"] for of_series in found for exemplar in of_series["exemplars"]]

    def _ask(self, path: str, params: dict[str, str]) -> Any:
        answer = httpx.get(self.url + path, params=params, timeout=30, trust_env=False)
        if answer.status_code != 200:
            raise QueryFailed(f"{params}: {answer.text}")
        return answer.json()["data"]


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[Database]:
    """A Prometheus that scrapes `target` (host and port) every second."""
    folder.mkdir()
    config = folder / "prometheus.yml"
    config.write_text(SCRAPE_CONFIG.format(target=target), encoding="utf-8")
    address = _free_address()
    options = (
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'tsdb'}",
        f"--web.listen-address={address}",
        "--enable-feature=exemplar-storage",
    )
    with _running(debian("prometheus", "prometheus"), options, folder, f"http://{address}/-/ready"):
        yield Database(f"http://{address}")


@contextmanager
def victoria_metrics(folder: Path) -> Iterator[Database]:
    """A VictoriaMetrics that names what comes by OTLP as Prometheus would."""
    folder.mkdir()
    address = _free_address()
    options = (
        f"-storageDataPath={folder / 'data'}",
        f"-httpListenAddr={address}",
        "-opentelemetry.usePrometheusNaming",
        # It would hold back the samples of the last half minute.
        "-search.latencyOffset=0s",
        "-memory.allowedBytes=256MB",
    )
    with _running(debian("victoria-metrics", "victoria-metrics"), options, folder, f"http://{address}/health"):
        yield Database(f"http://{address}")


@contextmanager
def _running(program: Path, options: tuple[str, ...], folder: Path, ready_url: str) -> Iterator[None]:
    log = folder / f"{program.name}.log"
    with log.open("w") as output, subprocess.Popen([program, *options], stdout=output, stderr=output) as process:

        def ready() -> bool:
            assert process.poll() is None, log.read_text()
            try:
                return httpx.get(ready_url, trust_env=False).status_code == 200
            except httpx.TransportError:
                time.sleep(0.1)
                return False

        try:
            eventually(ready)
            yield
        finally:
            process.terminate()
            process.wait(30)


def _free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return f"127.0.0.1:{listening.getsockname()[1]}"
