"""``bench mixed``: one person asks again and again while background streams keep the other lane full.

The person asks short questions, at random times; the background streams are agents, each call of which carries a
context of its own length and wants a short answer. Each server is started anew for each number of streams, and goes
through the same phases on the same prompts: the person alone, the background alone, both. Ours is asked alone again at
the end, as many times as at the start, for the machine may drift.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import anyio
import httpx
import msgspec

from bench import servers
from bench.bounded_steps import DEFAULT_MS, BoundedSteps, add_max_step_ms, bounded_steps
from bench.client import Completion
from bench.load import (
    Agents,
    Caller,
    Person,
    encoded_tokens,
    prompts,
    seen_tokens_per_s,
    tokens_per_s,
    ttfts_ms,
)
from bench.reporting import Bar, add_save, at_least, at_most, machine, markdown, print_bars, save
from bench.statistics import median, quantile, ratio

PATIENCE_S: Final = 10.0
WARM_UP_S: Final = 10.0


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of each server. Weights are those of the lanes, interactive first; lengths in tokens."""

    background: tuple[int, ...] = (8, 32)
    rounds: int = 24
    busy_s: float = 120.0
    interactive_prompt_tokens: int = 64
    interactive_tokens: int = 64
    background_prompt_tokens: tuple[int, int] = (50, 2000)
    background_tokens: int = 128
    solo_s: float = 20.0
    settle_s: float = 25.0
    think_s: float = 1.0
    weights: tuple[float, float] = (8.0, 1.0)
    max_step_ms: float = DEFAULT_MS
    seed: int = 1

    def for_peers(self) -> Load:
        """The same for less time: what they show is plain enough, and one takes a minute for a question."""
        return msgspec.structs.replace(
            self, rounds=self.rounds // 3, busy_s=self.busy_s / 2, solo_s=self.solo_s / 2, settle_s=self.settle_s / 2
        )


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One server with one number of streams. Interactive tokens/s count from asking to the last token: what is seen.

    Both busy ratios are to the idle *median*. ``given_up`` questions had no text when the time was over; what they had
    waited by then counts as their time to first token, so it is a lower bound. ``bounded_steps`` are our throughput
    lane's, while the person asked.
    """

    server: str
    background: int
    asked_idle: int
    asked_busy: int
    given_up: int
    ttft_idle_ms: float
    ttft_idle_p95_ms: float
    ttft_busy_ms: float
    ttft_busy_p95_ms: float
    ttft_busy_worst_ms: float
    busy_to_idle: float
    busy_p95_to_idle: float
    interactive_idle_tokens_per_s: float
    interactive_busy_tokens_per_s: float
    background_solo_tokens_per_s: float
    background_busy_tokens_per_s: float
    bounded_steps: BoundedSteps | None = None

    @property
    def interactive_kept(self) -> float:
        """Share of the idle tokens/s that the person has while the server is busy."""
        return ratio(self.interactive_busy_tokens_per_s, self.interactive_idle_tokens_per_s)

    @property
    def background_kept(self) -> float:
        """Share of its own tokens/s that the background has beside the person."""
        return ratio(self.background_busy_tokens_per_s, self.background_solo_tokens_per_s)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's options."""
    parser.add_argument("--background", type=int, nargs="+", default=(8, 32), metavar="STREAMS")
    parser.add_argument(
        "--context", type=int, nargs=2, default=(50, 2000), metavar=("LOW", "HIGH"), help="tokens of their prompts"
    )
    parser.add_argument("--rounds", type=int, default=24, help="questions to the idle server")
    parser.add_argument("--seconds", type=float, default=120.0, help="how long the person asks the busy server")
    parser.add_argument("--weights", type=float, nargs=2, default=(8.0, 1.0), metavar=("INTERACTIVE", "THROUGHPUT"))
    add_max_step_ms(parser)
    parser.add_argument("--peers", action="store_true", help="the same load against mlx_lm.server and vllm-mlx serve")
    add_save(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print, save; returns 0 if the promises were kept."""
    load = Load(
        background=tuple(arguments.background),
        background_prompt_tokens=tuple(arguments.context),
        rounds=arguments.rounds,
        busy_s=arguments.seconds,
        weights=tuple(arguments.weights),
        max_step_ms=arguments.max_step_ms,
    )
    rows = measure(load, with_peers=arguments.peers)
    promises = bars(rows, load)
    save(arguments.save, {"load": load, "rows": rows, "bars": promises})
    low, high = load.background_prompt_tokens
    print(
        f"Background prompts of {low} to {high} tokens, weights {load.weights[0]:g}:{load.weights[1]:g}, "
        f"`max_step_ms` {load.max_step_ms:g}, {machine()}\n"
    )
    print(table(rows) + "\n")
    return print_bars(promises)


def measure(load: Load, *, with_peers: bool) -> list[Row]:
    """All servers in turn with each number of streams, ours first."""
    with tempfile.TemporaryDirectory(prefix="opta-bench-") as scratch, servers.fp32_weights() as weights:
        config = Path(scratch) / "opta.yaml"
        interactive, throughput = load.weights
        config.write_text(
            f"lanes:\n  interactive: {{weight: {interactive:g}}}\n"
            f"  throughput: {{weight: {throughput:g}, max_active: {max(32, *load.background)},"
            f" max_step_ms: {load.max_step_ms:g}}}\n",
            "utf-8",
        )
        ours = servers.opta_router(config)
        others = servers.peers(weights, speculative=True) if with_peers else ()
        return [
            *(anyio.run(_measure_one, ours, load, streams, True) for streams in load.background),
            *(
                anyio.run(_measure_one, peer, load.for_peers(), streams, False)
                for peer in others
                for streams in load.background
            ),
        ]


async def _measure_one(server: servers.Server, load: Load, streams: int, ours: bool) -> Row:
    count = encoded_tokens()
    async with servers.running(server) as client:
        asking, working = callers(server, client, load)
        person = Person(asking, think_s=load.think_s, seed=load.seed)
        await _warm_up(asking, working)
        idle = await person.asks(load.rounds // 2 if ours else load.rounds)
        async with Agents(working, streams) as agents:
            await agents.settled(load.settle_s)
            solo = await tokens_per_s(agents, load.solo_s, count)
            before = await bounded_steps(client) if ours else None
            started_s = time.perf_counter()
            busy = await person.asks_for(load.busy_s, PATIENCE_S)
            ended_s = time.perf_counter()
            background = count(agents.streams, started_s, ended_s) / (ended_s - started_s)
            bounded = (await bounded_steps(client)).since(before) if before is not None else None
        if ours:
            idle += await person.asks(load.rounds - len(idle))
    ttft_idle, ttft_busy = ttfts_ms(idle), ttfts_ms(busy, ended_s)
    return Row(
        server=server.name,
        background=streams,
        asked_idle=len(idle),
        asked_busy=len(busy),
        given_up=sum(answer.ttft_s is None for answer in busy),
        ttft_idle_ms=median(ttft_idle),
        ttft_idle_p95_ms=quantile(ttft_idle, 0.95),
        ttft_busy_ms=median(ttft_busy),
        ttft_busy_p95_ms=quantile(ttft_busy, 0.95),
        ttft_busy_worst_ms=max(ttft_busy),
        busy_to_idle=median(ttft_busy) / median(ttft_idle),
        busy_p95_to_idle=quantile(ttft_busy, 0.95) / median(ttft_idle),
        interactive_idle_tokens_per_s=seen_tokens_per_s(idle, count),
        interactive_busy_tokens_per_s=seen_tokens_per_s(busy, count, ended_s),
        background_solo_tokens_per_s=solo,
        background_busy_tokens_per_s=background,
        bounded_steps=bounded,
    )


def callers(server: servers.Server, client: httpx.AsyncClient, load: Load) -> tuple[Caller, Caller]:
    """The person, who wants the likeliest answer, and an agent."""
    question = (load.interactive_prompt_tokens, load.interactive_prompt_tokens)
    return (
        Caller(
            client=client,
            model=server.model,
            headers=server.interactive_headers,
            prompts=prompts(question, f"person {load.seed}"),
            max_tokens=load.interactive_tokens,
            temperature=0.0,
        ),
        Caller(
            client=client,
            model=server.model,
            headers=server.background_headers,
            prompts=prompts(load.background_prompt_tokens, f"agents {load.seed}"),
            max_tokens=load.background_tokens,
            temperature=0.7,
        ),
    )


async def _warm_up(asking: Caller, working: Caller) -> None:
    """Compile, fill pools, reach the clock speed: a little of everything that is measured later."""
    await asking.ask(Completion(time.perf_counter()))
    with anyio.move_on_after(WARM_UP_S):
        async with Agents(working, 2) as agents:
            await agents.settled()
            await asking.ask(Completion(time.perf_counter()))
    await asking.ask(Completion(time.perf_counter()))


COLUMNS = (
    "server",
    "streams",
    "TTFT idle: median",
    "p95",
    "TTFT busy: median",
    "p95",
    "worst",
    "busy : idle",
    "busy p95 : idle median",
    "interactive tokens/s: idle",
    "busy",
    "background tokens/s: alone",
    "beside the person",
    "steps longer than `max_step_ms`",
)


def table(rows: Sequence[Row]) -> str:
    """Markdown, by the number of streams."""
    return markdown(COLUMNS, [_cells(row) for row in sorted(rows, key=lambda row: row.background)])


def _cells(row: Row) -> tuple[str, ...]:
    least = "≥ " if row.given_up else ""
    return (
        f"`{row.server}`",
        str(row.background),
        f"{row.ttft_idle_ms:,.0f} ms",
        f"{row.ttft_idle_p95_ms:,.0f} ms",
        f"{least}{row.ttft_busy_ms:,.0f} ms",
        f"{least}{row.ttft_busy_p95_ms:,.0f} ms",
        f"{least}{row.ttft_busy_worst_ms:,.0f} ms",
        f"{least}{row.busy_to_idle:.2f}",
        f"{least}{row.busy_p95_to_idle:.2f}",
        f"{row.interactive_idle_tokens_per_s:.1f}",
        f"{row.interactive_busy_tokens_per_s:.1f} ({row.interactive_kept:.0%})",
        f"{row.background_solo_tokens_per_s:.1f}",
        f"{row.background_busy_tokens_per_s:.1f} ({row.background_kept:.0%})",
        str(row.bounded_steps or ""),
    )


def bars(rows: Sequence[Row], load: Load) -> list[Bar]:
    """The promises of the two lanes, held against one run; the first row of a number of streams is ours."""
    promised = load.weights[1] / sum(load.weights)
    found: list[Bar] = []
    for streams in load.background:
        ours, *others = (row for row in rows if row.background == streams)
        at = f"{streams} streams"
        better = f" (better peer's: {min(row.busy_to_idle for row in others):.3g})" if others else ""
        better_p95 = f" (better peer's: {min(row.busy_p95_to_idle for row in others):.3g})" if others else ""
        found += [
            at_most(f"TTFT busy : idle, {at}{better}", ours.busy_to_idle, 1.5),
            at_most(f"TTFT busy p95 : idle median, {at}{better_p95}", ours.busy_p95_to_idle, 2.5),
            at_least(f"interactive tokens/s busy : idle, {at}", ours.interactive_kept, 0.75),
            at_least(f"background tokens/s kept, at least the lane's share, {at}", ours.background_kept, promised),
        ]
        if others:
            ttft = min(row.ttft_busy_ms for row in others)
            speed = max(row.interactive_busy_tokens_per_s for row in others)
            faster = ratio(ours.interactive_busy_tokens_per_s, speed)
            found += [
                at_least(f"better peer's TTFT busy : ours, {at}", ttft / ours.ttft_busy_ms, 3.0),
                at_least(f"our interactive tokens/s busy : better peer's, {at}", faster, 2.0),
            ]
    return found
