"""``bench overhead``: what the front door adds to a request when the engine answers at once.

The same request, one after the other, on three ways in turn: to the engine over its own socket, through the front door
over HTTP, and an HTTP exchange that does nothing (``GET /healthz``). Interleaved, so that a noisy machine disturbs all
three alike. Client, router and host share this machine.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import httpx
import msgspec

from bench import servers
from bench.reporting import add_save, machine, save
from bench.statistics import median, quantile
from lanes import wire
from lanes.supervisor import Supervisor
from opta_router.serving import host_settings
from policies.load import load

MODEL = "scripted"
CONFIG = f"""
models:
  - name: {MODEL}
    target: "scripted:"
    keep_alive: -1
    preload: true
"""
PROMPT = "an answer of one token, please"
WARM_UP = 50


class Overhead(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds of a request. ``added`` is through the front door less to the engine."""

    requests: int
    engine_ms: float
    front_door_ms: float
    front_door_p99_ms: float
    empty_exchange_ms: float
    added_ms: float
    added_to_engine: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's options."""
    parser.add_argument("--requests", type=int, default=1000)
    add_save(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print, save; returns 0."""
    found = measure(arguments.requests)
    print(f"{machine()}; {report(found)}")
    save(arguments.save, {"overhead": found})
    return 0


def measure(requests: int) -> Overhead:
    """Run all three ways; blocks until done."""
    with tempfile.TemporaryDirectory(prefix="opta-bench-") as scratch:
        config = Path(scratch) / "opta.yaml"
        config.write_text(CONFIG, "utf-8")
        return anyio.run(_measure, config, requests)


async def _measure(config: Path, requests: int) -> Overhead:
    supervisor = Supervisor(host_settings(load(config)))
    async with servers.running(servers.opta_router(config)) as client, anyio.create_task_group() as tg:
        await tg.start(supervisor.run)
        await supervisor.wait_ready()
        engine = await _timed_in_turn(
            requests, [lambda: _ask_engine(supervisor), lambda: _ask_front_door(client), lambda: _ask_nothing(client)]
        )
        tg.cancel_scope.cancel()
    engine_ms, front_door_ms, empty_ms = (median(times) for times in engine)
    return Overhead(
        requests=requests,
        engine_ms=round(engine_ms, 3),
        front_door_ms=round(front_door_ms, 3),
        front_door_p99_ms=round(quantile(engine[1], 0.99), 3),
        empty_exchange_ms=round(empty_ms, 3),
        added_ms=round(front_door_ms - engine_ms, 3),
        added_to_engine=round((front_door_ms - engine_ms) / engine_ms, 2),
    )


async def _timed_in_turn(requests: int, ways: list[Callable[[], Awaitable[None]]]) -> list[list[float]]:
    """Milliseconds of each request, by way."""
    times: list[list[float]] = [[] for _ in ways]
    for number in range(WARM_UP + requests):
        for way, taken_ms in zip(ways, times, strict=True):
            started_s = time.perf_counter()
            await way()
            if number >= WARM_UP:
                taken_ms.append((time.perf_counter() - started_s) * 1000)
    return times


async def _ask_engine(supervisor: Supervisor) -> None:
    submit = wire.Submit(
        f"{time.perf_counter_ns()}", MODEL, "interactive", wire.TextPrompt(PROMPT), 1, wire.Sampling(temperature=0.0)
    )
    generation = supervisor.submit(submit, lambda _: None)
    while not generation.ended:
        await generation.receive()


async def _ask_front_door(client: httpx.AsyncClient) -> None:
    body = {"model": MODEL, "prompt": PROMPT, "max_tokens": 1, "temperature": 0}
    (await client.post("/v1/completions", json=body, headers={"x-opta-lane": "interactive"})).raise_for_status()


async def _ask_nothing(client: httpx.AsyncClient) -> None:
    (await client.get("/healthz")).raise_for_status()


def report(found: Overhead) -> str:
    """Lines to print."""
    return "\n".join(
        [
            f"{found.requests} requests, one at a time; medians",
            f"engine over its socket      {found.engine_ms:.2f} ms",
            f"through the front door      {found.front_door_ms:.2f} ms (p99 {found.front_door_p99_ms:.2f} ms)",
            f"an empty HTTP exchange      {found.empty_exchange_ms:.2f} ms",
            f"added by the front door     {found.added_ms:.2f} ms, {found.added_to_engine:.2f} times the engine's own",
        ]
    )
