"""``opta-router bench``: measurements, each a ratio between things measured side by side in one run."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec


def main(argv: Sequence[str] | None = None) -> int:
    """Run one benchmark; returns 0, or 1 if a promise was not kept."""
    arguments = _parser().parse_args(argv)
    return int(arguments.run(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="opta-router bench", description=__doc__)
    benchmarks = parser.add_subparsers(required=True, metavar="BENCHMARK")

    mixed = benchmarks.add_parser("mixed", help="one person and a full background lane, on one device")
    mixed.add_argument("--background", type=int, default=8, help="background streams")
    mixed.add_argument("--context", type=int, default=2000, metavar="TOKENS", help="prompt of a background request")
    mixed.add_argument("--rounds", type=int, default=16, help="questions to the idle server")
    mixed.add_argument("--seconds", type=float, default=60.0, help="how long the person asks the busy server")
    mixed.add_argument("--weights", type=float, nargs=2, default=(8.0, 1.0), metavar=("INTERACTIVE", "THROUGHPUT"))
    mixed.add_argument("--peers", action="store_true", help="the same load against mlx_lm.server and vllm-mlx serve")
    _add_save(mixed)
    mixed.set_defaults(run=_mixed)

    overhead = benchmarks.add_parser("overhead", help="what the front door adds to a request")
    overhead.add_argument("--requests", type=int, default=1000, help="one after the other, to each server")
    overhead.add_argument("--rounds", type=int, default=3)
    overhead.add_argument("--seconds", type=float, default=3.0, help="at each number of connections, in each round")
    overhead.add_argument("--no-litellm", action="store_true", help="without LiteLLM, which uv installs for the run")
    _add_save(overhead)
    overhead.set_defaults(run=_overhead)

    identity = benchmarks.add_parser("identity", help="is the greedy answer the same, whichever way it is computed?")
    identity.add_argument("--tokens", type=int, default=96, help="of each answer")
    identity.add_argument("--batch", type=int, default=8)
    _add_save(identity)
    identity.set_defaults(run=_identity)

    pair = benchmarks.add_parser("pair", help="what speculation does for the embedded pair")
    pair.add_argument("--tokens", type=int, default=96, help="of each answer")
    pair.add_argument("--draft-lengths", type=int, nargs="+", default=[2, 4, 8])
    _add_save(pair)
    pair.set_defaults(run=_pair)
    return parser


def _add_save(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the figures, the machine and the date as JSON")


def _mixed(arguments: argparse.Namespace) -> int:
    from bench import mixed  # noqa: PLC0415

    load = mixed.Load(
        background=arguments.background,
        background_prompt_tokens=arguments.context,
        rounds=arguments.rounds,
        busy_s=arguments.seconds,
        weights=tuple(arguments.weights),
    )
    rows = mixed.measure(load, with_peers=arguments.peers)
    promises = mixed.bars(rows, load)
    print(
        f"{load.background} background streams with prompts of {load.background_prompt_tokens} tokens, "
        f"weights {load.weights[0]:g}:{load.weights[1]:g}, {machine()}\n"
    )
    print(mixed.table(rows) + "\n")
    for bar in promises:
        print(f"{'ok  ' if bar.kept else 'FAIL'} {bar.promise}: {bar.measured:g} (bound {bar.bound:g})")
    _save(arguments.save, {"load": load, "rows": rows, "bars": promises})
    return 0 if all(bar.kept for bar in promises) else 1


def _overhead(arguments: argparse.Namespace) -> int:
    from bench import overhead, overhead_report  # noqa: PLC0415

    effort = overhead.Effort(requests=arguments.requests, rounds=arguments.rounds, seconds=arguments.seconds)
    ways = overhead.measure(effort, with_litellm=not arguments.no_litellm)
    promises = overhead_report.bars(ways)
    print(f"{machine()}, shared by client, router and host\n\n{overhead_report.table(ways)}\n")
    for bar in promises:
        print(f"{'ok  ' if bar.kept else 'FAIL'} {bar.promise}: {bar.measured:g} (bound {bar.bound:g})")
    _save(arguments.save, {"effort": effort, "ways": ways, "bars": promises})
    return 0 if all(bar.kept for bar in promises) else 1


def _identity(arguments: argparse.Namespace) -> int:
    from bench import identity  # noqa: PLC0415

    found = identity.measure(arguments.tokens, arguments.batch)
    print(f"{machine()}; {arguments.tokens} tokens each\n{identity.report(found)}")
    _save(arguments.save, {"tokens": arguments.tokens, "identity": found})
    return 0 if all(one.same == one.of for one in found[:-1]) else 1


def _pair(arguments: argparse.Namespace) -> int:
    from bench import pair  # noqa: PLC0415

    found = pair.measure(arguments.tokens, arguments.draft_lengths)
    print(f"{machine()}; {pair.report(found)}")
    _save(arguments.save, {"tokens": arguments.tokens, "pair": found})
    return 0 if found.promises_kept else 1


def machine() -> str:
    """The machine in a few words."""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"


def _save(path: Path | None, figures: dict[str, Any]) -> None:
    if path is None:
        return
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    data = msgspec.json.encode({"machine": machine(), "date": today, **figures})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(data, indent=1) + b"\n")
