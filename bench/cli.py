"""``opta-router bench``: measurements, each a ratio between things measured side by side in one run.

Each benchmark is a module of its name with ``add_arguments(parser)`` and ``run(arguments) -> int``, which returns 0, or
1 if a promise was not kept.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Final

BENCHMARKS: Final = {
    "mixed": "one person and a full background lane, on one device",
    "weights": "device time and throughput of two busy lanes, while their weights change",
    "batch": "the throughput lane alone, beside other servers",
    "overhead": "what the front door adds to a request",
    "collector": "what a collector in trouble does to requests",
    "identity": "is the greedy answer the same, whichever way it is computed?",
    "connections": "what clients that wait, and clients that vanish, cost and leave behind",
    "fairness": "how long a client waits behind another one's queue",
    "hosts": "how long streams pause when the engine is killed or stopped, and whether anyone notices more",
    "speculation": "what speculation gains over plain decoding and over mlx-lm's, by kind of prompt",
    "turns": "what a conversation's second turn waits for, beside its first",
    "pair": "what speculation does for the embedded pair",
    "matrix": "speculation on and off: models, prompt classes, lanes, concurrency",
    "recovery": "a draft that guesses badly is switched off, and a good one comes back",
    "gate": "hold a matrix against the bounds, and say which pairs are ready",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one benchmark; returns 0, or 1 if a promise was not kept."""
    given = sys.argv[1:] if argv is None else list(argv)
    arguments = _parser(given[:1]).parse_args(given)
    return int(arguments.run(arguments))


def _parser(named: Sequence[str]) -> argparse.ArgumentParser:
    """The parser, complete for the benchmark that is ``named``: only its module is imported."""
    parser = argparse.ArgumentParser(prog="opta-router bench", description=(__doc__ or "").partition("\n")[0])
    benchmarks = parser.add_subparsers(required=True, metavar="BENCHMARK")
    for name, what in BENCHMARKS.items():
        benchmark = benchmarks.add_parser(name, help=what, description=what)
        if name in named:
            module = import_module(f"bench.{name}")
            module.add_arguments(benchmark)
            benchmark.set_defaults(run=module.run)
    return parser
