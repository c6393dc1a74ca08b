"""`opta-router serve` as a process of its own, and how tests talk to it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
import openai
import psutil

ANSWER_DEADLINE_S = 60.0
EXIT_DEADLINE_S = 20.0


class RouterProcess:
    """A router that has printed its address. `url` has no slash at its end."""

    def __init__(self, process: subprocess.Popen[str], url: str, log: Path) -> None:
        self.process = process
        self.url = url
        self.log = log

    def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        """One request on a connection of its own. `body` is sent as it stands if it is bytes, else as JSON."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return httpx.post(
            self.url + path,
            content=content,
            headers={"content-type": "application/json", **names},
            timeout=ANSWER_DEADLINE_S,
            trust_env=False,
        )

    def get(self, path: str, **headers: str) -> httpx.Response:
        """One GET."""
        return httpx.get(self.url + path, headers=headers, timeout=ANSWER_DEADLINE_S, trust_env=False)

    def http(self) -> httpx.AsyncClient:
        """For requests that run side by side, to be closed by whoever opened it."""
        return httpx.AsyncClient(base_url=self.url, timeout=ANSWER_DEADLINE_S, trust_env=False)

    @contextmanager
    def sdk(self, **headers: str) -> Iterator[openai.OpenAI]:
        """The official SDK, without its retries: what the router says is what is seen."""
        with (
            httpx.Client(trust_env=False, timeout=ANSWER_DEADLINE_S) as http,
            openai.OpenAI(
                base_url=f"{self.url}/v1", api_key="unused", max_retries=0, default_headers=headers, http_client=http
            ) as client,
        ):
            yield client

    def said(self) -> str:
        """The log so far, each entry as `LEVEL logger: message` and its traceback; what is no entry as it stands."""
        return "".join(_as_text(line) for line in self.log.read_text().splitlines())

    def entries(self) -> list[dict[str, Any]]:
        """The log's entries so far."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def host_pid(self) -> int:
        """The engines' process: the oldest child, for the others stand by."""
        return min(psutil.Process(self.process.pid).children(), key=lambda child: child.create_time()).pid

    def end(self) -> int:
        """SIGTERM, and its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(EXIT_DEADLINE_S)


def _as_text(line: str) -> str:
    if not line.startswith("{"):
        return f"{line}\n"
    entry = json.loads(line)
    text = f"{entry['level'].upper()} {entry['logger']}: {entry['message']}\n"
    return text + (f"{entry['exception']}\n" if "exception" in entry else "")


@contextmanager
def router(
    folder: Path,
    config: str | None = None,
    environment: Mapping[str, str] = MappingProxyType({}),
    log: Path | None = None,
    arguments: tuple[str, ...] = (),
) -> Iterator[RouterProcess]:
    """A router on a free port, with `config` as its YAML file; killed at the end if it still runs.

    What the machine says about OpenTelemetry does not reach it; `environment` is added to the rest. `log` is where its
    standard error goes, if not into `folder`, and `arguments` are added to its command line.
    """
    command = [sys.executable, "-m", "opta_router", "serve", "--port", "0", *arguments]
    if config is not None:
        file = folder / "opta.yaml"
        file.write_text(config, encoding="utf-8")
        command += ["--config", str(file)]
    log = log or folder / "router.log"
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    with (
        log.open("w") as stderr,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=stderr, text=True, env={**inherited, **environment}
        ) as process,
    ):
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if " answers at http://" not in line:
                process.kill()
                raise RuntimeError(f"the router said {line!r}, and:\n{log.read_text()}")
            yield RouterProcess(process, line.split(" answers at ")[1].split()[0], log)
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(EXIT_DEADLINE_S)
                except subprocess.TimeoutExpired:
                    process.kill()
