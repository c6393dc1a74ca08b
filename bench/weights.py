"""``bench weights``: two lanes that always have work, while their weights change.

In a cycle, each lane alone, then both, with one pair of weights after the other, set through
``PATCH /admin/lanes/{lane}`` while they run, and each alone again. Shares are of the device time that the router
reports, over windows of ten seconds from one heartbeat of its host to another. A lane's *normalised* throughput is its
tokens/s over the median of those it has alone; the sum of both says what sharing costs. There are several cycles, each
beginning with other weights, and the median of their sums counts: a machine that is shared with others makes the same
matrix products in 1 to 1.8 times the time, from one two seconds to the next. Last, a person with pauses beside the
throughput lane.

Tokens are those of the router's usage, so the target may be any. Both lanes sample: greedy answers repeat themselves,
and how soon they do would decide how much speculation gains. It gains up to twice as much on one text as on another all
the same: so the interactive lane is asked one short question again and again, the throughput lane one of each stream,
with their seeds. Whatever else runs, the answers are the same ones, and a window holds all of them, most of them whole.
Prompts are computed each time, as no prompt caches are kept.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Final

import anyio
import httpx
import msgspec

from bench import servers
from bench.bounded_steps import DEFAULT_MS, add_max_step_ms, of_lane
from bench.client import Completion
from bench.device import device
from bench.load import Agents, Caller, Person, again_and_again, prompts, reported_tokens, ttfts_ms
from bench.reporting import add_save, machine, print_bars, save
from bench.weights_report import (
    Cycle,
    Found,
    Rates,
    Reading,
    Split,
    alone_line,
    bars,
    device_used,
    shares,
    table,
    ttft_line,
)

Weights = tuple[float, float]
"""Interactive lane first."""

MODEL: Final = "measured"
WEIGHTS: Final[tuple[Weights, ...]] = ((1.0, 1.0), (4.0, 1.0), (16.0, 1.0))
PERSONS_WEIGHTS: Final[Weights] = (8.0, 1.0)
WINDOW_S: Final = 10.0
CHANGE_S: Final = 2.0
STARTED_S: Final = 5.0
"""After so long all interactive streams are decoding."""
ALONE_AGAIN_S: Final = 6.0
"""The throughput lane takes long steps again five seconds after the other lane's last."""
PATIENCE_S: Final = 10.0
THINK_S: Final = 1.0
POLL_S: Final = 0.02
HEARTBEAT_TIMEOUT_S: Final = 10.0
SUM_BOUND_CPU: Final = 0.95
SUM_BOUND_GPU: Final = 0.9

Span = tuple[float, float]
"""From when to when, on ``time.perf_counter``."""

Window = tuple[list[Reading], Span]
"""Readings at the ends of all windows, and the times of the first and the last."""


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What runs in both lanes; lengths in tokens. Without a ``target`` it is the embedded pair."""

    target: str | None = None
    interactive: int = 2
    background: int = 8
    seconds: float = 10.0
    cycles: int = 5
    interactive_prompt_tokens: int = 64
    interactive_tokens: int = 64
    background_prompt_tokens: tuple[int, int] = (50, 1000)
    background_tokens: int = 128
    questions: int = 24
    busy_s: float = 45.0
    question_tokens: int = 64
    temperature: float = 0.7
    max_step_ms: float = DEFAULT_MS
    seed: int = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's options."""
    parser.add_argument("--target", metavar="DIR", help="a model's directory, instead of the embedded pair; no draft")
    parser.add_argument("--background", type=int, default=8, metavar="STREAMS", help="of the throughput lane")
    parser.add_argument(
        "--context", type=int, nargs=2, default=(50, 1000), metavar=("LOW", "HIGH"), help="tokens of their prompts"
    )
    add_max_step_ms(parser)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each phase")
    parser.add_argument("--cycles", type=int, default=5, help="how often everything is measured")
    parser.add_argument("--questions", type=int, default=24, help="of the person to the idle server")
    parser.add_argument(
        "--sum-bound", type=float, help=f"of normalised throughputs; {SUM_BOUND_CPU} on a CPU, else {SUM_BOUND_GPU}"
    )
    add_save(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print, save; returns 0 if the promises were kept."""
    load = Load(
        target=str(Path(arguments.target).expanduser().resolve()) if arguments.target else None,
        background=arguments.background,
        background_prompt_tokens=tuple(arguments.context),
        seconds=arguments.seconds,
        cycles=arguments.cycles,
        questions=arguments.questions,
        max_step_ms=arguments.max_step_ms,
    )
    runs_on = device()
    sum_bound = arguments.sum_bound or (SUM_BOUND_CPU if runs_on == "cpu" else SUM_BOUND_GPU)
    found = measure(load)
    promises = bars(found, sum_bound)
    print(
        f"{load.interactive} interactive and {load.background} throughput streams on {runs_on}, "
        f"`max_step_ms` {load.max_step_ms:g}, {machine()}\n"
    )
    print(f"{table(found)}\n\n{alone_line(found)}\n{ttft_line(found)}\n")
    save(arguments.save, {"device": runs_on, "load": load, "found": found, "bars": promises})
    return print_bars(promises)


def measure(load: Load) -> Found:
    """Blocks until done."""
    with tempfile.TemporaryDirectory(prefix="opta-bench-") as scratch:
        config = Path(scratch) / "opta.yaml"
        config.write_bytes(msgspec.json.encode(configuration(load)))  # YAML, too
        return anyio.run(_measure, servers.opta_router(config, MODEL), load)


def configuration(load: Load) -> dict[str, object]:
    """The router's: one model that stays, and room for every stream. No host stands by: its start takes most of a core
    for eight seconds, and where there are two, that phase is not like the others.
    """
    pair = {"target": load.target} if load.target else {"target": "embedded:target", "draft": "embedded:draft"}
    return {
        "models": [{"name": MODEL, **pair, "keep_alive": -1, "preload": True}],
        "lanes": {
            "interactive": {"max_active": load.interactive},
            "throughput": {"max_active": max(32, load.background), "max_step_ms": load.max_step_ms},
        },
        "memory": {"prompt_caches": None},
        "server": {"standby": False},
    }


async def _measure(server: servers.Server, load: Load) -> Found:
    async with servers.running(server) as client:
        interactive = _Lane(lambda: _interactive(client, server, load), load.interactive)
        throughput = _Lane(lambda: _throughput(client, server, load), load.background)
        interactive_alone = [await _alone(interactive, load)]
        throughput_alone: list[tuple[Span, Span]] = []
        windows: list[dict[Weights, Window]] = []
        for cycle in range(load.cycles):
            first = cycle % len(WEIGHTS)
            async with throughput.busy() as agents:
                await agents.settled()
                before = await _alone_again(load)
                windows.append(
                    {w: await _split(client, w, interactive, load) for w in WEIGHTS[first:] + WEIGHTS[:first]}
                )
                throughput_alone.append((before, await _alone_again(load)))
            interactive_alone.append(await _alone(interactive, load))
        idle, busy, gave_up_s = await _person(client, server, load, throughput)
    return Found(
        cycles=tuple(
            Cycle(
                interactive_alone=(interactive.tokens_per_s(before), interactive.tokens_per_s(after)),
                throughput_alone=(throughput.tokens_per_s(alone[0]), throughput.tokens_per_s(alone[1])),
                splits=tuple(_found(weights, found[weights], interactive, throughput) for weights in WEIGHTS),
            )
            for (before, after), alone, found in zip(
                pairwise(interactive_alone), throughput_alone, windows, strict=True
            )
        ),
        ttft_idle_ms=tuple(ttfts_ms(idle)),
        ttft_busy_ms=tuple(ttfts_ms(busy, gave_up_s)),
    )


def _found(weights: Weights, window: Window, interactive: _Lane, throughput: _Lane) -> Split:
    readings, span = window
    return Split(
        weights=weights,
        shares=shares(readings),
        device_used=device_used(readings),
        bounded_steps=readings[-1].bounded_steps.since(readings[0].bounded_steps),
        rates=Rates(interactive.tokens_per_s(span), throughput.tokens_per_s(span)),
    )


class _Lane:
    """A lane's streams, over all phases: an answer is counted when the run is over, with all that is known of it."""

    def __init__(self, caller: Callable[[], Caller], count: int) -> None:
        self._caller = caller
        self._count = count
        self._answers: list[Completion] = []

    @asynccontextmanager
    async def busy(self) -> AsyncIterator[Agents]:
        """All streams run inside the block, from the first question on."""
        async with Agents(self._caller(), self._count) as agents:
            try:
                yield agents
            finally:
                self._answers += agents.streams

    def tokens_per_s(self, span: Span) -> float:
        start_s, end_s = span
        return reported_tokens(self._answers, start_s, end_s) / (end_s - start_s)


async def _alone(lane: _Lane, load: Load) -> Span:
    """When the lane ran alone, once all its streams were decoding."""
    async with lane.busy():
        await anyio.sleep(STARTED_S)
        return await _passed(load.seconds)


async def _alone_again(load: Load) -> Span:
    """When the throughput lane, which runs, was alone, and took the long steps that it takes then."""
    await anyio.sleep(ALONE_AGAIN_S)
    return await _passed(load.seconds)


async def _passed(seconds: float) -> Span:
    started_s = time.perf_counter()
    await anyio.sleep(seconds)
    return started_s, time.perf_counter()


async def _split(client: httpx.AsyncClient, weights: Weights, interactive: _Lane, load: Load) -> Window:
    """Both lanes with these weights."""
    async with interactive.busy():
        await anyio.sleep(STARTED_S)
        await _set_weights(client, weights)
        await anyio.sleep(CHANGE_S)
        readings = [await _fresh_reading(client)]
        for _ in range(max(1, round(load.seconds / WINDOW_S))):
            await anyio.sleep(readings[-1].at_s + min(WINDOW_S, load.seconds) - time.perf_counter())
            readings.append(await _fresh_reading(client))
    return readings, (readings[0].at_s, readings[-1].at_s)


async def _set_weights(client: httpx.AsyncClient, weights: Weights) -> None:
    for lane, weight in zip(("interactive", "throughput"), weights, strict=True):
        (await client.patch(f"/admin/lanes/{lane}", json={"weight": weight})).raise_for_status()


async def _fresh_reading(client: httpx.AsyncClient) -> Reading:
    """The next heartbeat's.

    Raises:
        TimeoutError: none came in a long time, or nothing ran.
    """
    known = await _reading(client)
    with anyio.fail_after(HEARTBEAT_TIMEOUT_S):
        while True:
            found = await _reading(client)
            if (found.interactive_s, found.throughput_s) != (known.interactive_s, known.throughput_s):
                return found
            await anyio.sleep(POLL_S)


async def _reading(client: httpx.AsyncClient) -> Reading:
    lanes = (await client.get("/admin/lanes")).raise_for_status().json()
    interactive, throughput = lanes["interactive"], lanes["throughput"]
    return Reading(time.perf_counter(), interactive["device_s"], throughput["device_s"], of_lane(throughput))


async def _person(
    client: httpx.AsyncClient, server: servers.Server, load: Load, throughput: _Lane
) -> tuple[list[Completion], list[Completion], float]:
    """A person's answers from the idle server, before and after those from the busy one, and when the last was due."""
    await _set_weights(client, PERSONS_WEIGHTS)
    asking = _person_asking(client, server, load)
    person = Person(asking, think_s=THINK_S, seed=load.seed)
    idle = await person.asks(load.questions // 2)
    async with throughput.busy() as agents:
        await agents.settled()
        busy = await person.asks_for(load.busy_s, PATIENCE_S)
        ended_s = time.perf_counter()
    idle += await person.asks(load.questions - len(idle))
    return idle, busy, ended_s


def _person_asking(client: httpx.AsyncClient, server: servers.Server, load: Load) -> Caller:
    return Caller(
        client=client,
        model=server.model,
        headers=server.interactive_headers,
        prompts=_short_prompts(load, "person"),
        max_tokens=load.question_tokens,
        temperature=load.temperature,
    )


def _interactive(client: httpx.AsyncClient, server: servers.Server, load: Load) -> Caller:
    questions, seeds = again_and_again(_short_prompts(load, "interactive"), 1)
    return Caller(
        client=client,
        model=server.model,
        headers=server.interactive_headers,
        prompts=questions,
        seeds=seeds,
        max_tokens=load.interactive_tokens,
        temperature=load.temperature,
    )


def _throughput(client: httpx.AsyncClient, server: servers.Server, load: Load) -> Caller:
    different = prompts(load.background_prompt_tokens, f"throughput {load.seed}")
    questions, seeds = again_and_again(different, load.background)
    return Caller(
        client=client,
        model=server.model,
        headers=server.background_headers,
        prompts=questions,
        seeds=seeds,
        max_tokens=load.background_tokens,
        temperature=load.temperature,
    )


def _short_prompts(load: Load, whose: str) -> Iterator[str]:
    return prompts((load.interactive_prompt_tokens, load.interactive_prompt_tokens), f"{whose} {load.seed}")
