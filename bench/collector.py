"""``bench collector``: what a collector does to requests that is down, then never answers, then comes back.

Two routers in front of the scripted engine, which answers at once, both with telemetry; the collector of one always
answers, that of the other goes through its troubles, at one address. Both are asked in turn, in short blocks, and of
each block's ratio of median times the median is held against what it was while both collectors answered: two processes
are never quite alike, and what else the machine does disturbs some blocks. At the end both stop, right after requests,
the troubled one while its collector does not answer.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Final

import anyio
import msgspec
import psutil

from bench import http_load, servers, telemetry
from bench.otlp_sink import collecting
from bench.overhead import REQUEST, timed_in_turn
from bench.reporting import Bar, add_save, at_least, at_most, machine, markdown, print_bars, save
from bench.statistics import median

HEALTHY, DOWN, SILENT, BACK = "answers", "down", "never answers", "back"
OFTEN: Final = {"OTEL_BSP_SCHEDULE_DELAY": "500", "OTEL_METRIC_EXPORT_INTERVAL": "1000"}
"""Both are sent often, so that each phase has many tries that fail."""

BLOCK: Final = 50
"""Requests to each router that one ratio is of."""

RATIO: Final = (0.98, 1.02)
MOST_GROWTH_MIB: Final = 16.0
"""Of a router: 512 traces may wait, and their spans while they are encoded."""

MOST_EXIT_S: Final = 3.0
EXIT_TIMEOUT_S: Final = 60.0


class Phase(msgspec.Struct, frozen=True, kw_only=True):
    """A while with one state of the collector. ``ratio``: median request time, troubled : not.

    ``memory_mib`` is what the troubled router occupies at its end, ``dropped`` what it has lost in it.
    """

    collector: str
    requests: int
    ratio: float
    memory_mib: float
    dropped: dict[str, int]


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """All of it. The exits are of the router without trouble, and of that whose collector does not answer."""

    phases: list[Phase]
    exit_s: float
    troubled_exit_s: float
    arrived_when_back: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's options."""
    parser.add_argument("--seconds", type=float, default=20.0, help="of each phase")
    add_save(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print, save; returns 0, or 1 if a promise was not kept."""
    with tempfile.TemporaryDirectory(prefix="opta-bench-") as scratch:
        result = anyio.run(_measure, Path(scratch), arguments.seconds)
    promises = bars(result)
    print(f"{machine()}, shared by client, routers, hosts and collectors\n\n{table(result.phases)}\n")
    print(f"exit: {result.troubled_exit_s:.2f} s with a collector that never answers, else {result.exit_s:.2f} s\n")
    save(arguments.save, {"seconds": arguments.seconds, "result": result, "bars": promises})
    return print_bars(promises)


def bars(result: Result) -> list[Bar]:
    """What is promised of a collector in trouble."""
    promises: list[Bar] = []
    healthy = result.phases[0].ratio
    for phase in result.phases[1:]:
        what = f"median request time, collector {phase.collector} : answers"
        promises += [at_least(what, phase.ratio / healthy, RATIO[0]), at_most(what, phase.ratio / healthy, RATIO[1])]
    first, *later = (phase.memory_mib for phase in result.phases)
    return [
        *promises,
        at_most("MiB that the router grows by", max(later) - first, MOST_GROWTH_MIB),
        at_most("seconds longer to exit", result.troubled_exit_s - result.exit_s, MOST_EXIT_S),
        at_least("exports that arrive when it is back", result.arrived_when_back, 1),
    ]


def table(phases: Sequence[Phase]) -> str:
    """Markdown."""
    columns = ("collector", "requests to each", "median time : undisturbed", "router's memory", "dropped")
    rows = [
        (
            *(phase.collector, f"{phase.requests:,}", f"{phase.ratio:.4f}", f"{phase.memory_mib:.1f} MiB"),
            ", ".join(f"{count:,} {signal}" for signal, count in phase.dropped.items() if count),
        )
        for phase in phases
    ]
    return markdown(columns, rows)


async def _measure(scratch: Path, seconds: float) -> Result:
    async with contextlib.AsyncExitStack() as stack:
        good, bad = servers.free_port(), servers.free_port()
        await stack.enter_async_context(collecting(good))
        undisturbed = await stack.enter_async_context(_router(scratch / "undisturbed.yaml", good))
        troubled = await stack.enter_async_context(_router(scratch / "troubled.yaml", bad))
        phases: list[Phase] = []
        states: dict[str, Callable[[], AbstractAsyncContextManager[Any]]] = {
            HEALTHY: lambda: collecting(bad),
            DOWN: contextlib.nullcontext,
            SILENT: lambda: collecting(bad, silent=True),
            BACK: lambda: collecting(bad),
        }
        arrived = 0
        for collector, state in states.items():
            async with state() as sink:
                phases.append(await _phase(collector, undisturbed, troubled, seconds))
                if collector == BACK:
                    arrived = (await sink.get("/")).json().get("/v1/traces", 0)
        async with collecting(bad, silent=True):
            troubled_exit_s = await _exit_s(troubled)
        exit_s = await _exit_s(undisturbed)
    return Result(phases=phases, exit_s=exit_s, troubled_exit_s=troubled_exit_s, arrived_when_back=arrived)


@contextlib.asynccontextmanager
async def _router(config: Path, port: int) -> AsyncIterator[servers.Running]:
    server = telemetry.router(config, f"http://127.0.0.1:{port}")
    async with servers.started(msgspec.structs.replace(server, environment=OFTEN)) as running:
        yield running


async def _phase(collector: str, undisturbed: servers.Running, troubled: servers.Running, seconds: float) -> Phase:
    before = await _dropped(troubled)
    ratios: list[float] = []
    async with http_load.connected(undisturbed.port) as one, http_load.connected(troubled.port) as other:
        asks = [lambda: one.exchange(REQUEST), lambda: other.exchange(REQUEST)]
        until_s = time.perf_counter() + seconds
        while time.perf_counter() < until_s:
            asks.reverse()  # who is asked first has the machine to itself a little longer
            first, second = map(median, await timed_in_turn(BLOCK, asks, warm_up=2))
            ratios.append(second / first if len(ratios) % 2 else first / second)
    after = await _dropped(troubled)
    return Phase(
        collector=collector,
        requests=len(ratios) * BLOCK,
        ratio=round(median(ratios), 4),
        memory_mib=round(psutil.Process(troubled.pid).memory_info().rss / 2**20, 1),
        dropped={signal: count - before[signal] for signal, count in after.items()},
    )


async def _dropped(router: servers.Running) -> dict[str, int]:
    status = (await router.client.get("/admin/status")).json()
    dropped: dict[str, int] = status["telemetry"]["dropped"]
    return dropped


async def _exit_s(router: servers.Running) -> float:
    """Some requests, SIGTERM, and how long it takes. The process is a child that somebody else waits for.

    A client's idle connection takes a server's end two seconds, so there is one whichever router it is.
    """
    await router.client.get("/healthz")
    async with http_load.connected(router.port) as connection:
        await timed_in_turn(BLOCK, [lambda: connection.exchange(REQUEST)])
    process = psutil.Process(router.pid)
    started_s = time.perf_counter()
    os.kill(router.pid, signal.SIGTERM)
    with anyio.fail_after(EXIT_TIMEOUT_S):
        while _runs(process):  # noqa: ASYNC110 - another process has no event
            await anyio.sleep(0.01)
    return round(time.perf_counter() - started_s, 2)


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
