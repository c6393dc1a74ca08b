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

from bench import http_load, servers
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
STREAMS: Final = 32
CONNECTIONS: Final = (1, 32, 256)
WARM_UP: Final = 50

OURS, ECHO, LITELLM, ENGINE = "opta-router", "echo", "LiteLLM", "engine"


class Effort(msgspec.Struct, frozen=True, kw_only=True):
    """How much is measured. ``rounds`` times, each server is flooded for ``seconds`` at each number of connections."""

    requests: int = 1000
    rounds: int = 3
    seconds: float = 3.0


class Way(msgspec.Struct, kw_only=True):
    """One way to an answer. CPU time is that of all its processes, host included, at 32 connections."""

    name: str
    median_ms: float
    p99_ms: float
    requests_per_s: dict[int, float] = {}
    cpu_ms_per_request: dict[str, float] = {}
    stream_tokens_per_s: float | None = None


class Bar(msgspec.Struct, frozen=True):
    """One promise, what was measured, and what was promised."""

    promise: str
    measured: float
    bound: float
    kept: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of ``bench overhead``."""
    parser.add_argument("--requests", type=int, default=1000, help="one after the other, to each server")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="at each number of connections, in each round")
    parser.add_argument("--no-litellm", action="store_true", help="without LiteLLM, which uv installs for the run")


def effort(arguments: argparse.Namespace) -> Effort:
    """What the command line asks for."""
    return Effort(requests=arguments.requests, rounds=arguments.rounds, seconds=arguments.seconds)


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
            answer = http_load.body_of(await connection.exchange(_request(AT_ONCE, len(PROMPT))))
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
    request = _request(AT_ONCE, len(PROMPT))
    async with contextlib.AsyncExitStack() as stack:
        asks: dict[str, Callable[[], Awaitable[Any]]] = {}
        for name, server in running.items():
            connection = await stack.enter_async_context(http_load.connected(server.port))
            asks[name] = lambda connection=connection: connection.exchange(request)  # type: ignore[misc]
        supervisor = await stack.enter_async_context(_supervised(config))
        asks[ENGINE] = lambda: _ask_engine(supervisor)
        times = await _timed_in_turn(requests, list(asks.values()))
    return {
        name: Way(name=name, median_ms=round(median(taken), 3), p99_ms=round(quantile(taken, 0.99), 3))
        for name, taken in zip(asks, times, strict=True)
    }


async def _timed_in_turn(requests: int, ways: Sequence[Callable[[], Awaitable[Any]]]) -> list[list[float]]:
    """Milliseconds of each request, by way."""
    times: list[list[float]] = [[] for _ in ways]
    for number in range(WARM_UP + requests):
        for way, taken_ms in zip(ways, times, strict=True):
            started_s = time.perf_counter()
            await way()
            if number >= WARM_UP:
                taken_ms.append((time.perf_counter() - started_s) * 1000)
    return times


async def _floods(running: dict[str, servers.Running], ways: dict[str, Way], wanted: Effort) -> None:
    request = _request(AT_ONCE, len(PROMPT))
    for connections in CONNECTIONS:
        rates: dict[str, list[float]] = {name: [] for name in running}
        for _ in range(wanted.rounds):
            for name, server in running.items():
                before = _cpu_s(running)
                rate = await http_load.flood(server.port, request, connections=connections, seconds=wanted.seconds)
                rates[name].append(rate)
                if connections == STREAMS:
                    answered = rate * wanted.seconds
                    ways[name].cpu_ms_per_request = {
                        process: round((spent - before[process]) * 1000 / answered, 3)
                        for process, spent in _cpu_s(running).items()
                        if spent - before[process] > 0.01 * wanted.seconds
                    }
        for name, measured in rates.items():
            ways[name].requests_per_s[connections] = round(median(measured), 1)


async def _streams(running: dict[str, servers.Running], ways: dict[str, Way], wanted: Effort) -> None:
    request = _request(TOKEN_BY_TOKEN, STREAM_TOKENS, stream=True)
    rates: dict[str, list[float]] = {name: [] for name in running if name != ECHO}
    for _ in range(wanted.rounds):
        for name, measured in rates.items():
            answers = await http_load.flood(running[name].port, request, connections=STREAMS, seconds=wanted.seconds)
            measured.append(answers * STREAM_TOKENS)
    for name, measured in rates.items():
        ways[name].stream_tokens_per_s = round(median(measured), 1)


def _request(model: str, max_tokens: int, *, stream: bool = False) -> bytes:
    # Long enough to be echoed to max_tokens: the scripted engine ends a chat where its message ends.
    content = PROMPT * -(-max_tokens // len(PROMPT))
    body = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": max_tokens}
    return http_load.post(PATH, msgspec.json.encode({**body, "temperature": 0, "stream": stream}))


def _cpu_s(running: dict[str, servers.Running]) -> dict[str, float]:
    """CPU seconds of every server's process, of its children together, and of this client."""
    spent: dict[str, float] = {"client": sum(psutil.Process().cpu_times()[:2])}
    for name, server in running.items():
        process = psutil.Process(server.pid)
        spent[name] = sum(process.cpu_times()[:2])
        children = process.children(recursive=True)
        if children:
            spent[f"{name}'s children"] = sum(sum(child.cpu_times()[:2]) for child in children)
    return spent


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


def bars(ways: Sequence[Way]) -> list[Bar]:
    """What the front door promises, held against one run."""
    found = {way.name: way for way in ways}
    ours, echo = found[OURS], found[ECHO]
    added_ms = ours.median_ms - echo.median_ms
    promises = [Bar("median ms added over the echo, one connection", round(added_ms, 3), 1.0, added_ms < 1.0)]
    for connections, rate in ours.requests_per_s.items():
        share = rate / echo.requests_per_s[connections]
        promises.append(Bar(f"requests/s : the echo's, {connections} connections", round(share, 2), 0.5, share >= 0.5))
    if LITELLM in found:
        for connections, rate in ours.requests_per_s.items():
            times = rate / found[LITELLM].requests_per_s[connections]
            promises.append(
                Bar(f"requests/s : LiteLLM's, {connections} connections", round(times, 1), 5.0, times >= 5.0)
            )
    return promises


def table(ways: Sequence[Way]) -> str:
    """Markdown."""
    columns = (
        *("way", "median", "p99", "added to the echo: median", "p99"),
        *(f"requests/s at {connections}" for connections in CONNECTIONS),
        *("CPU ms a request at 32", f"tokens/s, {STREAMS} streams"),
    )
    echo = next(way for way in ways if way.name == ECHO)
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for way in ways:
        cpu = ", ".join(f"{name} {spent:.2f}" for name, spent in way.cpu_ms_per_request.items())
        cells = (
            *(f"`{way.name}`", f"{way.median_ms:.2f} ms", f"{way.p99_ms:.2f} ms"),
            *(f"{way.median_ms - echo.median_ms:.2f} ms", f"{way.p99_ms - echo.p99_ms:.2f} ms"),
            *(f"{way.requests_per_s[n]:,.0f}" if way.requests_per_s else "" for n in CONNECTIONS),
            *(cpu, f"{way.stream_tokens_per_s:,.0f}" if way.stream_tokens_per_s else ""),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
