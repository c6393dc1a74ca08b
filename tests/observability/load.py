"""Work for a router that leaves a trace in every metric and on every panel."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from typing import Any

import httpx

from tests.e2e.processes import eventually
from tests.e2e.router_process import ANSWER_DEADLINE_S, RouterProcess

TEXT = "/v1/completions"
KEYS = {"editor": "ok-editor-0123456789abcdef0123456789", "agents": "ok-agents-0123456789abcdef0123456789"}
CONFIG = f"""
models:
  - {{name: opta-tiny, target: embedded:target, draft: embedded:draft, aliases: [auto], preload: true}}
lanes:
  interactive: {{max_active: 1, max_queue: 1, spill: throughput, demote_after_tokens: 16}}
  throughput: {{max_active: 4, max_queue: 2}}
clients:
  - {{name: editor, key_sha256: {sha256(KEYS["editor"].encode()).hexdigest()}, may_hint: [interactive, throughput]}}
  - {{name: agents, key_sha256: {sha256(KEYS["agents"].encode()).hexdigest()}, lane: throughput}}
telemetry: {{max_traces_per_s: 1000}}
"""
GREEDY: dict[str, Any] = {"model": "auto", "temperature": 0, "logit_bias": {"0": -100, "4": -100}}
"""Without the embedded target's end tokens, so that answers are as long as they may be."""

CODE = "def read_lines(path):\n    with open(path) as file:\n"
NOISE = "zq wx %% ~~ 9 jj {}{}"
LOW_ACCEPTANCE = 0.35


def work(running: RouterProcess) -> None:
    """A person and agents for some seconds: speculation good and bad, a spill, a demotion, rejections, an engine lost.

    Answers are not looked at here, only that each is one that such load may have.
    """
    for number in range(6):
        ask(running, "editor", prompt=f"# {number}\n{CODE}", max_tokens=96)
    assert any(low_acceptance(running, seed) for seed in range(40))
    ask(running, "editor", prompt=CODE, max_tokens=8, num_draft_tokens=0)
    # An auto request is one for the interactive lane if somebody watches, and outlives its share of that.
    list(stream(running, "editor", prompt=CODE, max_tokens=32))
    with ThreadPoolExecutor(16) as pool:
        many = [pool.submit(ask, running, "agents", lane=None, prompt=CODE, max_tokens=32) for _ in range(12)]
        many += [pool.submit(ask, running, "editor", prompt=CODE, max_tokens=32) for _ in range(4)]
        statuses = {one.result() for one in many}
    assert statuses == {200, 429}
    lose_the_engine(running)
    ask(running, "editor", prompt=CODE, max_tokens=32)
    assert running.post("/admin/reload", b"").status_code == 200


def low_acceptance(running: RouterProcess, seed: int) -> bool:
    """One answer to noise; whether less of it was accepted than the dashboards call low."""
    body = GREEDY | {"prompt": NOISE, "max_tokens": 24, "temperature": 2.0, "seed": seed}
    answer = running.post(TEXT, body, authorization=f"Bearer {KEYS['editor']}", x_opta_lane="interactive").json()
    ratio = answer["opta"]["speculative"].get("acceptance_ratio")
    return ratio is not None and ratio < LOW_ACCEPTANCE


def ask(running: RouterProcess, client: str, *, lane: str | None = "interactive", **body: Any) -> int:
    """One answer that is not streamed, and its status."""
    hint = {"x_opta_lane": lane} if lane else {}
    status = running.post(TEXT, GREEDY | body, authorization=f"Bearer {KEYS[client]}", **hint).status_code
    assert status in (200, 429)
    return status


def stream(running: RouterProcess, client: str, **body: Any) -> Iterator[dict[str, Any]]:
    """The events of a stream."""
    whole = GREEDY | body | {"stream": True}
    headers = {"authorization": f"Bearer {KEYS[client]}"}
    with httpx.stream(
        "POST", running.url + TEXT, json=whole, headers=headers, timeout=ANSWER_DEADLINE_S, trust_env=False
    ) as answer:
        assert answer.status_code == 200
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                yield json.loads(line.removeprefix("data: "))


def lose_the_engine(running: RouterProcess) -> None:
    """Kill it under a stream, which another one goes on with."""
    events = stream(running, "editor", prompt=CODE, max_tokens=128)
    next(events)
    os.kill(running.host_pid(), signal.SIGKILL)
    *_, last = events
    assert last["opta"]["resumed"] == 1
    eventually(lambda: running.get("/readyz").status_code == 200)
