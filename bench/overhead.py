"""``bench overhead``: what the front door adds to a request when the engine answers at once.

The same client (:mod:`bench.http_load`) sends the same request to three servers, and to the engine without any:

- ``opta-router`` in front of the scripted engine, which answers at once;
- ``echo``: Starlette on Hypercorn with nothing else, which answers the same bytes;
- ``LiteLLM``: its proxy, one worker, in front of that ``opta-router``, so what it adds is the difference;
- ``engine``: the scripted engine over its own socket, without HTTP.

All run at the same time and are asked in turn, so that a noisy machine disturbs all alike. Client, router and host
share its cores: with two of them, the requests/s are bounded by all three together.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final

import anyio
import msgspec
import psutil

from bench import http_load, overhead_report, servers
from bench.overhead_report import (
    CONNECTIONS,
    CPU_CONNECTIONS,
    ECHO,
    ENGINE,
    LITELLM,
    OURS,
    STREAMS,
    Added,
    Way,
)
from bench.reporting import add_save, machine, print_bars, save
from bench.statistics import median, quantile
from lanes import wire
from lanes.supervisor import Supervisor
from opta_router.serving import host_settings
from policies.load import load

PATH: Final = "/v1/chat/completions"
AT_ONCE: Final = "at-once"
TOKEN_BY_TOKEN: Final = "token-by-token"
CONFIG: Final = f"""
models:
  - {{name: {AT_ONCE}, target: "scripted:tokens_per_step=64", keep_alive: -1, preload: true}}
  - {{name: {TOKEN_BY_TOKEN}, target: "scripted:", keep_alive: -1, preload: true}}
routing: {{default: throughput}}
"""
PROMPT: Final = "an answer of a few words, please"
STREAM_TOKENS: Final = 256
IDLE_SHARE: Final = 0.01
"""Of a core: a process that takes less has no part in what is measured."""

WARM_UP: Final = 50

ADDED_TO: Final = {OURS: ECHO, LITELLM: OURS}


def _request(model: str, max_tokens: int, *, stream: bool = False) -> bytes:
    # Long enough to be echoed to max_tokens: the scripted engine ends a chat where its message ends.
    content = PROMPT * -(-max_tokens // len(PROMPT))
    body = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": max_tokens}
    return http_load.post(PATH, msgspec.json.encode({**body, "temperature": 0, "stream": stream}))


REQUEST: Final = _request(AT_ONCE, len(PROMPT))
STREAM_REQUEST: Final = _request(TOKEN_BY_TOKEN, STREAM_TOKENS, stream=True)


class Effort(msgspec.Struct, frozen=True, kw_only=True):
    """How much is measured. ``rounds`` times, each server is flooded for ``seconds`` at each number of connections."""

    requests: int = 1000
    rounds: int = 3
    seconds: float = 3.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's options."""
    parser.add_argument("--requests", type=int, default=1000, help="one after the other, to each server")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="at each number of connections, in each round")
    parser.add_argument("--telemetry", action="store_true", help="compare with and without telemetry instead")
    parser.add_argument("--no-litellm", action="store_true", help="without LiteLLM, which uv installs for the run")
    add_save(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print, save; returns 0, or 1 if a promise was not kept."""
    if arguments.telemetry:
        from bench import telemetry  # noqa: PLC0415 - it measures with this module

        return telemetry.run(arguments)
    effort = Effort(requests=arguments.requests, rounds=arguments.rounds, seconds=arguments.seconds)
    ways = measure(effort, with_litellm=not arguments.no_litellm)
    promises = overhead_report.bars(ways)
    print(f"{machine()}, shared by client, router and host\n\n{overhead_report.table(ways)}\n")
    save(arguments.save, {"effort": effort, "ways": ways, "bars": promises})
    return print_bars(promises)


def measure(wanted: Effort, *, with_litellm: bool) -> list[Way]:
    """Every way; blocks until done."""
    with tempfile.TemporaryDirectory(prefix="opta-bench-") as scratch:
        return anyio.run(_measure, Path(scratch), wanted, with_litellm)


async def _measure(scratch: Path, wanted: Effort, with_litellm: bool) -> list[Way]:
    config = scratch / "opta.yaml"
    config.write_text(CONFIG, "utf-8")
    async with contextlib.AsyncExitStack() as stack:
        ours = await stack.enter_async_context(servers.started(servers.opta_router(config)))
        running = {OURS: ours}
        async with http_load.connected(ours.port) as connection:
            answer = http_load.body_of(await connection.exchange(REQUEST))
        (scratch / "answer.json").write_bytes(answer)
        running[ECHO] = await stack.enter_async_context(servers.started(servers.echo(scratch / "answer.json")))
        if with_litellm:
            models = (AT_ONCE, TOKEN_BY_TOKEN)
            proxy = servers.litellm_proxy(scratch / "litellm.yaml", models, f"http://127.0.0.1:{ours.port}/v1")
            running[LITELLM] = await stack.enter_async_context(servers.started(proxy))
        ways = await _one_at_a_time(config, running, wanted.requests)
        await _floods(running, ways, wanted)
        await _streams(running, ways, wanted)
    return list(ways.values())


async def _one_at_a_time(config: Path, running: dict[str, servers.Running], requests: int) -> dict[str, Way]:
    async with contextlib.AsyncExitStack() as stack:
        asks: dict[str, Callable[[], Awaitable[Any]]] = {}
        for name, server in running.items():
            connection = await stack.enter_async_context(http_load.connected(server.port))
            asks[name] = lambda connection=connection: connection.exchange(REQUEST)  # type: ignore[misc]
        supervisor = await stack.enter_async_context(_supervised(config))
        asks[ENGINE] = lambda: _ask_engine(supervisor)
        times = await timed_in_turn(requests, list(asks.values()))
    ways = {
        name: Way(name=name, median_ms=round(median(taken), 3), p99_ms=round(quantile(taken, 0.99), 3))
        for name, taken in zip(asks, times, strict=True)
    }
    for name in ways.keys() & ADDED_TO.keys():
        way, base = ways[name], ways[ADDED_TO[name]]
        way.adds = Added(base.name, round(way.median_ms - base.median_ms, 3), round(way.p99_ms - base.p99_ms, 3))
    return ways


async def timed_in_turn(
    requests: int, ways: Sequence[Callable[[], Awaitable[Any]]], warm_up: int = WARM_UP
) -> list[list[float]]:
    """Milliseconds of each request, by way; the first ``warm_up`` of each do not count."""
    times: list[list[float]] = [[] for _ in ways]
    for number in range(warm_up + requests):
        for way, taken_ms in zip(ways, times, strict=True):
            started_s = time.perf_counter()
            await way()
            if number >= warm_up:
                taken_ms.append((time.perf_counter() - started_s) * 1000)
    return times


async def _floods(running: dict[str, servers.Running], ways: dict[str, Way], wanted: Effort) -> None:
    for connections in CONNECTIONS:
        rates: dict[str, list[float]] = {name: [] for name in running}
        for _ in range(wanted.rounds):
            for name, server in running.items():
                rate, cpu_ms = await _flooded(running, server, connections, wanted.seconds)
                rates[name].append(rate)
                if connections == CPU_CONNECTIONS:
                    ways[name].cpu_ms_per_request = cpu_ms
        for name, measured in rates.items():
            ways[name].requests_per_s[connections] = round(median(measured), 1)


async def _flooded(
    running: dict[str, servers.Running], server: servers.Running, connections: int, seconds: float
) -> tuple[float, dict[str, float]]:
    """Requests/s, and the CPU milliseconds of each process on a request, without those that only idle."""
    before_s = _cpu_s(running)
    rate = await http_load.flood(server.port, REQUEST, connections=connections, seconds=seconds)
    spent_s = {process: cpu_s - before_s[process] for process, cpu_s in _cpu_s(running).items()}
    busy = {process: cpu_s for process, cpu_s in spent_s.items() if cpu_s > IDLE_SHARE * seconds}
    return rate, {process: round(cpu_s * 1000 / (rate * seconds), 3) for process, cpu_s in busy.items()}


async def _streams(running: dict[str, servers.Running], ways: dict[str, Way], wanted: Effort) -> None:
    rates: dict[str, list[float]] = {name: [] for name in running if name != ECHO}
    for _ in range(wanted.rounds):
        for name, measured in rates.items():
            port = running[name].port
            answers = await http_load.flood(port, STREAM_REQUEST, connections=STREAMS, seconds=wanted.seconds)
            measured.append(answers * STREAM_TOKENS)
    for name, measured in rates.items():
        ways[name].stream_tokens_per_s = round(median(measured), 1)


def _cpu_s(running: dict[str, servers.Running]) -> dict[str, float]:
    """CPU seconds so far, of this client and of every server; of ours, router and host apart."""
    spent = {"client": _own_cpu_s(psutil.Process())}
    for name, server in running.items():
        process = psutil.Process(server.pid)
        children_s = sum(_own_cpu_s(child) for child in process.children(recursive=True))
        if name == OURS:
            spent |= {"router": _own_cpu_s(process), "host": children_s}
        else:
            spent[name] = _own_cpu_s(process) + children_s
    return spent


def _own_cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


@contextlib.asynccontextmanager
async def _supervised(config: Path) -> AsyncIterator[Supervisor]:
    supervisor = Supervisor(host_settings(load(config)))
    async with anyio.create_task_group() as tg:
        tg.start_soon(supervisor.run)
        await supervisor.wait_ready()
        yield supervisor
        tg.cancel_scope.cancel()


async def _ask_engine(supervisor: Supervisor) -> None:
    submit = wire.Submit(
        f"{time.perf_counter_ns()}",
        AT_ONCE,
        "throughput",
        wire.ChatPrompt((wire.ChatMessage("user", PROMPT),)),
        len(PROMPT),
        wire.Sampling(temperature=0.0),
    )
    generation = supervisor.submit(submit, lambda _: None)
    while not generation.ended:
        await generation.receive()
