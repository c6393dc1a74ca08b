"""``bench batch``: the throughput lane alone, beside the servers that batch.

So many streams ask again at once, with prompts of mixed lengths and short answers. Every server runs the embedded
target in fp32, without a draft, and is asked the same prompts in the same order, through HTTP. Ours is measured first
and again last, and the mean taken, as the machine may drift. Tokens are counted by encoding the text that arrived.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import anyio
import msgspec

from bench import servers
from bench.load import Agents, Caller, encoded_tokens, prompts, tokens_per_s
from bench.reporting import Bar, add_save, at_least, machine, markdown, print_bars, save
from bench.statistics import ratio


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of each server; lengths in tokens."""

    streams: tuple[int, ...] = (1, 8, 32)
    seconds: float = 30.0
    prompt_tokens: tuple[int, int] = (50, 1000)
    tokens: int = 128
    temperature: float = 0.7
    seed: int = 1


class Row(msgspec.Struct, frozen=True):
    """One server's tokens/s with each number of streams, once for each time it was measured."""

    server: str
    tokens_per_s: dict[int, list[float]]

    def mean(self, streams: int) -> float:
        """Of all times."""
        measured = self.tokens_per_s[streams]
        return sum(measured) / len(measured)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's options."""
    parser.add_argument("--streams", type=int, nargs="+", default=(1, 8, 32))
    parser.add_argument("--context", type=int, nargs=2, default=(50, 1000), metavar=("LOW", "HIGH"))
    parser.add_argument("--seconds", type=float, default=30.0, help="of each number of streams")
    add_save(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print, save; returns 0 if the promises were kept."""
    load = Load(
        streams=tuple(sorted(arguments.streams)), seconds=arguments.seconds, prompt_tokens=tuple(arguments.context)
    )
    rows = measure(load)
    promises = bars(rows)
    save(arguments.save, {"load": load, "rows": rows, "bars": promises})
    low, high = load.prompt_tokens
    print(f"Tokens/s with prompts of {low} to {high} tokens, answers of up to {load.tokens}, {machine()}\n")
    print(table(rows) + "\n")
    return print_bars(promises)


def measure(load: Load) -> list[Row]:
    """All servers in turn, ours first and last; a row for each, ours first."""
    with tempfile.TemporaryDirectory(prefix="opta-bench-") as scratch, servers.fp32_weights() as weights:
        config = Path(scratch) / "opta.yaml"
        config.write_text(f"lanes:\n  throughput: {{max_active: {max(32, *load.streams)}}}\n", "utf-8")
        ours = servers.opta_router(config)
        in_turn = [ours, *servers.peers(weights, speculative=False), ours]
        return merged([Row(server.name, anyio.run(_measure_one, server, load)) for server in in_turn])


def merged(rows: Sequence[Row]) -> list[Row]:
    """One row for each server, in the order of their first."""
    found: dict[str, Row] = {}
    for row in rows:
        known = found.setdefault(row.server, Row(row.server, {streams: [] for streams in row.tokens_per_s}))
        for streams, measured in row.tokens_per_s.items():
            known.tokens_per_s[streams].extend(measured)
    return list(found.values())


async def _measure_one(server: servers.Server, load: Load) -> dict[int, list[float]]:
    count, found = encoded_tokens(), dict[int, list[float]]()
    async with servers.running(server) as client:
        for streams in load.streams:
            caller = Caller(
                client=client,
                model=server.model,
                headers=server.background_headers,
                prompts=prompts(load.prompt_tokens, f"batch {streams} {load.seed}"),
                max_tokens=load.tokens,
                temperature=load.temperature,
            )
            async with Agents(caller, streams, load.seed) as agents:
                await agents.settled()
                found[streams] = [await tokens_per_s(agents, load.seconds, count)]
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
    """Markdown: tokens/s, and those of each time where there were several."""
    streams = list(rows[0].tokens_per_s)
    return markdown(
        ["server", *(f"{count} stream{'s' if count > 1 else ''}" for count in streams)],
        [[f"`{row.server}`", *(_cell(row, count) for count in streams)] for row in rows],
    )


def _cell(row: Row, streams: int) -> str:
    times = row.tokens_per_s[streams]
    each = f" ({', '.join(f'{rate:.1f}' for rate in times)})" if len(times) > 1 else ""
    return f"{row.mean(streams):.1f}{each}"
