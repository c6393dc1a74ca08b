"""``bench overhead --telemetry``: what telemetry takes of the front door.

Three routers in front of the scripted engine, which answers at once, all running and asked in turn:

- ``off``: nothing is recorded (``OTEL_SDK_DISABLED``);
- ``on``: traces and metrics are sent to a collector of this machine, and scraped in each round, all as configured by
  default, so of a flood as many requests are traced as ``telemetry.max_traces_per_s`` says;
- ``every request traced``: the same without that bound.

One after the other gives the latency; there, all requests of the last are traced. Floods that take turns give the
requests/s: of each router's the rate that a quarter of them exceeds, for whatever else the machine does only slows.
Give them five seconds or more each, for the SDK sends traces that often.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import anyio
import msgspec
import psutil

from bench import http_load, servers
from bench.otlp_sink import collecting
from bench.overhead import CONFIG, REQUEST, timed_in_turn
from bench.reporting import Bar, at_least, at_most, machine, markdown, print_bars, save
from bench.statistics import median, quantile

OFF, ON, EVERY = "off", "on", "every request traced"
CONNECTIONS: Final = 32
FASTEST_PER_S: Final = 10_000
"""A bound on traces that none of these comes to."""

LEAST_DISTURBED: Final = 0.75
"""Quantile of the floods' rates; of what they cost, the other end's."""

LEAST_SHARE: Final = 0.97
MOST_MS: Final = 0.2


class Cost(msgspec.Struct, kw_only=True):
    """One router. ``share`` is of the requests/s without telemetry, ``cpu_ms`` what a request takes of its process."""

    name: str
    median_ms: float
    p99_ms: float
    requests_per_s: float = 0.0
    cpu_ms: float = 0.0
    share: float = 1.0
    dropped: dict[str, int] = {}


def run(arguments: argparse.Namespace) -> int:
    """Measure, print, save; returns 0, or 1 if a promise was not kept."""
    costs = measure(arguments.requests, arguments.rounds, arguments.seconds)
    promises = bars(costs)
    print(f"{machine()}, shared by client, routers and hosts\n\n{table(costs)}\n")
    effort = {"requests": arguments.requests, "rounds": arguments.rounds, "seconds": arguments.seconds}
    save(arguments.save, {"effort": effort, "telemetry": costs, "bars": promises})
    return print_bars(promises)


def bars(costs: Sequence[Cost]) -> list[Bar]:
    """What is promised of telemetry."""
    found = {cost.name: cost for cost in costs}
    without_ms = found[OFF].median_ms
    return [
        at_least(f"requests/s with telemetry : without, at {CONNECTIONS}", found[ON].share, LEAST_SHARE),
        at_most("median ms that telemetry adds", found[ON].median_ms - without_ms, MOST_MS),
        at_most("median ms that a trace adds", found[EVERY].median_ms - without_ms, MOST_MS),
    ]


def table(costs: Sequence[Cost]) -> str:
    """Markdown."""
    columns = ("telemetry", "median", "p99", f"requests/s at {CONNECTIONS}", ": off", "CPU a request", "traces dropped")
    rows = [
        (
            *(cost.name, f"{cost.median_ms:.3f} ms", f"{cost.p99_ms:.3f} ms", f"{cost.requests_per_s:,.0f}"),
            *(f"{cost.share:.3f}", f"{cost.cpu_ms:.3f} ms", f"{cost.dropped.get('traces', 0):,}"),
        )
        for cost in costs
    ]
    return markdown(columns, rows)


def measure(requests: int, rounds: int, seconds: float) -> list[Cost]:
    """All three; blocks until done."""
    with tempfile.TemporaryDirectory(prefix="opta-bench-") as scratch:
        return anyio.run(_measure, Path(scratch), requests, rounds, seconds)


async def _measure(scratch: Path, requests: int, rounds: int, seconds: float) -> list[Cost]:
    async with contextlib.AsyncExitStack() as stack:
        port = servers.free_port()
        await stack.enter_async_context(collecting(port))
        endpoint = f"http://127.0.0.1:{port}"
        routers = {
            OFF: await stack.enter_async_context(servers.started(_without(scratch / "off.yaml"))),
            ON: await stack.enter_async_context(servers.started(router(scratch / "on.yaml", endpoint))),
            EVERY: await stack.enter_async_context(
                servers.started(router(scratch / "every.yaml", endpoint, f"max_traces_per_s: {FASTEST_PER_S}"))
            ),
        }
        costs = await _one_at_a_time(routers, requests)
        await _flooded(routers, costs, rounds, seconds)
        for name, cost in costs.items():
            status = (await routers[name].client.get("/admin/status")).json()
            cost.dropped = status["telemetry"]["dropped"]
    return list(costs.values())


def router(config: Path, endpoint: str, *settings: str) -> servers.Server:
    """A router that sends its traces and metrics to ``endpoint``; writes its configuration."""
    telemetry = ", ".join((f'otlp_endpoint: "{endpoint}"', *settings))
    config.write_text(f"{CONFIG}telemetry: {{{telemetry}}}\n", "utf-8")
    return servers.opta_router(config)


def _without(config: Path) -> servers.Server:
    config.write_text(CONFIG, "utf-8")
    return msgspec.structs.replace(servers.opta_router(config), environment={"OTEL_SDK_DISABLED": "true"})


async def _one_at_a_time(routers: dict[str, servers.Running], requests: int) -> dict[str, Cost]:
    async with contextlib.AsyncExitStack() as stack:
        connections = [await stack.enter_async_context(http_load.connected(one.port)) for one in routers.values()]
        asks = [lambda connection=connection: connection.exchange(REQUEST) for connection in connections]
        times = await timed_in_turn(requests, asks)
    return {
        name: Cost(name=name, median_ms=round(median(taken), 4), p99_ms=round(quantile(taken, 0.99), 4))
        for name, taken in zip(routers, times, strict=True)
    }


async def _flooded(routers: dict[str, servers.Running], costs: dict[str, Cost], rounds: int, seconds: float) -> None:
    rates: dict[str, list[float]] = {name: [] for name in routers}
    spent_ms: dict[str, list[float]] = {name: [] for name in routers}
    for number in range(rounds):
        await routers[ON].client.get("/metrics")
        # Which is first changes, so that a machine that slows down favours neither.
        for name in (OFF, ON) if number % 2 else (ON, OFF):
            await _flood(routers[name], seconds, rates[name], spent_ms[name])
    await _flood(routers[EVERY], seconds, rates[EVERY], spent_ms[EVERY])
    for name, cost in costs.items():
        cost.requests_per_s = round(quantile(rates[name], LEAST_DISTURBED), 1)
        cost.cpu_ms = round(quantile(spent_ms[name], 1 - LEAST_DISTURBED), 4)
    for cost in costs.values():
        cost.share = round(cost.requests_per_s / costs[OFF].requests_per_s, 4)


async def _flood(server: servers.Running, seconds: float, rates: list[float], spent_ms: list[float]) -> None:
    process = psutil.Process(server.pid)
    before = process.cpu_times()
    rate = await http_load.flood(server.port, REQUEST, connections=CONNECTIONS, seconds=seconds)
    after = process.cpu_times()
    rates.append(rate)
    spent_ms.append((after.user + after.system - before.user - before.system) * 1000 / (rate * seconds))
