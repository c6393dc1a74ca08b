"""``bench batch``: the throughput lane alone, beside the servers that batch.

So many streams ask again at once, with prompts of mixed lengths and short answers. Every server runs the embedded
target in fp32, without a draft, and is asked the same prompts in the same order, through HTTP. All of them run all the
time, idle but for the one that is asked: they are measured in turn, in rounds that begin with another one each, and the
mean is taken, as the machine may drift. Tokens are counted by encoding the text that arrived.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import httpx
import msgspec

from bench import servers
from bench.load import Agents, Caller, Count, encoded_tokens, prompts, tokens_per_s
from bench.reporting import Bar, add_save, at_least, machine, markdown, print_bars, save
from bench.statistics import ratio


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of each server; lengths in tokens."""

    streams: tuple[int, ...] = (1, 8, 32)
    seconds: float = 20.0
    rounds: int = 3
    prompt_tokens: tuple[int, int] = (50, 1000)
    tokens: int = 128
    temperature: float = 0.7
    seed: int = 1


class Row(msgspec.Struct, frozen=True):
    """One server's tokens/s with each number of streams, in each round."""

    server: str
    tokens_per_s: dict[int, list[float]]

    def mean(self, streams: int) -> float:
        """Of all rounds."""
        measured = self.tokens_per_s[streams]
        return sum(measured) / len(measured)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's options."""
    parser.add_argument("--streams", type=int, nargs="+", default=(1, 8, 32))
    parser.add_argument("--context", type=int, nargs=2, default=(50, 1000), metavar=("LOW", "HIGH"))
    parser.add_argument("--seconds", type=float, default=20.0, help="of each number of streams, in each round")
    parser.add_argument("--rounds", type=int, default=3, help="how often each server is measured")
    add_save(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print, save; returns 0 if the promises were kept."""
    load = Load(
        streams=tuple(sorted(arguments.streams)),
        seconds=arguments.seconds,
        rounds=arguments.rounds,
        prompt_tokens=tuple(arguments.context),
    )
    rows = measure(load)
    promises = bars(rows)
    save(arguments.save, {"load": load, "rows": rows, "bars": promises})
    low, high = load.prompt_tokens
    print(f"Tokens/s with prompts of {low} to {high} tokens, answers of up to {load.tokens}, {machine()}\n")
    print(table(rows) + "\n")
    return print_bars(promises)


def measure(load: Load) -> list[Row]:
    """A row for each server, ours first; blocks until done."""
    with tempfile.TemporaryDirectory(prefix="opta-bench-") as scratch, servers.fp32_weights() as weights:
        config = Path(scratch) / "opta.yaml"
        lanes = {"throughput": {"max_active": max(32, *load.streams)}}
        # No host stands by: its start would take most of a core while the peers are measured.
        config.write_bytes(msgspec.json.encode({"lanes": lanes, "server": {"standby": False}}))  # YAML, too
        in_turn = [servers.opta_router(config), *servers.peers(weights, speculative=False)]
        return anyio.run(_measure, in_turn, load)


async def _measure(in_turn: Sequence[servers.Server], load: Load) -> list[Row]:
    count = encoded_tokens()
    rows = [Row(server.name, {streams: [] for streams in load.streams}) for server in in_turn]
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(servers.running(server)) for server in in_turn]
        each = list(zip(rows, in_turn, clients, strict=True))
        for streams in load.streams:
            for round_ in range(load.rounds):
                first = round_ % len(each)
                for row, server, client in each[first:] + each[:first]:
                    seed = f"batch {streams} {round_} {load.seed}"  # no round's prompts are known from another
                    caller = _agent(server, client, load, seed)
                    row.tokens_per_s[streams].append(await _rate(caller, streams, load, count))
    return rows


def _agent(server: servers.Server, client: httpx.AsyncClient, load: Load, seed: str) -> Caller:
    return Caller(
        client=client,
        model=server.model,
        headers=server.background_headers,
        prompts=prompts(load.prompt_tokens, seed),
        max_tokens=load.tokens,
        temperature=load.temperature,
    )


async def _rate(caller: Caller, streams: int, load: Load, count: Count) -> float:
    async with Agents(caller, streams, load.seed) as agents:
        await agents.settled()
        found = await tokens_per_s(agents, load.seconds, count)
        agents.finish()
    return found


def bars(rows: Sequence[Row]) -> list[Bar]:
    """No peer is faster with any number of streams; the first row is ours."""
    ours, *others = rows
    return [
        at_least(f"tokens/s : {peer.server}'s, {streams} streams", ratio(ours.mean(streams), peer.mean(streams)), 1.0)
        for peer in others
        for streams in ours.tokens_per_s
    ]


def table(rows: Sequence[Row]) -> str:
    """Markdown: tokens/s, and those of each round where there were several."""
    streams = list(rows[0].tokens_per_s)
    return markdown(
        ["server", *(f"{count} stream{'s' if count > 1 else ''}" for count in streams)],
        [[f"`{row.server}`", *(_cell(row, count) for count in streams)] for row in rows],
    )


def _cell(row: Row, streams: int) -> str:
    times = row.tokens_per_s[streams]
    each = f" ({', '.join(f'{rate:.1f}' for rate in times)})" if len(times) > 1 else ""
    return f"{row.mean(streams):.1f}{each}"
