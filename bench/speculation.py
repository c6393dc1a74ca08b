"""``bench speculation``: what the interactive lane's engine gains over plain decoding and over mlx-lm's speculation.

The prompts of ``bench/prompts``, greedily and at a temperature, each in several ways, one right after the other, so
that a noisy machine disturbs all alike; of ``--repeats`` the fastest counts. A speedup is one way's seconds of decoding
over another's, per token, behind the first token; answers go on behind an end-of-sequence token, so that all are as
long. The editing prompts run once more with their *answers*: the embedded target is too small to copy, so here its
logits are computed, and then the token that the edit asks for is raised above all others. What a round costs is real,
and what is proposed is what an edit like this gives. In a process of its own, with OpenBLAS where the machine has one.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from bench.prompts import CLASSES
from bench.reporting import Bar, add_save, at_least, machine, markdown, print_bars, save
from lanes import blas, wire

Way = str
PLAIN, OURS, LOOKUP, DRAFT = "plain", "ours", "lookup", "draft"
GUIDED: Final = "editing, as asked"
"""The class of editing prompts whose answers are those that were asked for."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to measure."""

    target: str
    draft: str
    tokens: int
    max_draft_tokens: int
    temperatures: tuple[float, ...]
    mlx_lm_lengths: tuple[int, ...]
    repeats: int
    classes: tuple[str, ...]


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """One answer: seconds for each token behind the first, and for our ways what was drafted."""

    token_s: float
    tokens: int
    digest: str
    counters: wire.SpecCounters | None = None


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt at one temperature, in every way."""

    prompt_class: str
    prompt: str
    temperature: float
    answers: dict[Way, Answer]

    def speedup(self, way: Way, over: Way = PLAIN) -> float:
        """How many times as fast ``way`` is."""
        return self.answers[over].token_s / self.answers[way].token_s


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """All that was measured."""

    device: str
    blas: str | None
    plan: Plan
    measured: tuple[Measured, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's options."""
    parser.add_argument("--target", default="embedded:target", help="a directory or repository")
    parser.add_argument("--draft", default="embedded:draft")
    parser.add_argument("--tokens", type=int, default=128, help="of each answer")
    parser.add_argument("--max-draft-tokens", type=int, default=8)
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 0.8])
    parser.add_argument("--mlx-lm-lengths", type=int, nargs="*", default=[2, 3, 4], help="its num_draft_tokens")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--classes", nargs="+", choices=CLASSES, default=list(CLASSES))
    parser.add_argument("--add", type=Path, metavar="FILE", help="take up what an earlier run saved there, too")
    add_save(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print, save; returns 0 if the promises were kept."""
    plan = Plan(
        target=arguments.target,
        draft=arguments.draft,
        tokens=arguments.tokens,
        max_draft_tokens=arguments.max_draft_tokens,
        temperatures=tuple(arguments.temperatures),
        mlx_lm_lengths=tuple(arguments.mlx_lm_lengths),
        repeats=arguments.repeats,
        classes=tuple(arguments.classes),
    )
    found = measure(plan)
    if arguments.add is not None:
        earlier = msgspec.json.decode(arguments.add.read_bytes(), type=Saved).run
        found = msgspec.structs.replace(found, measured=earlier.measured + found.measured)
    print(f"{machine()}; {found.device}; BLAS {found.blas or 'none needed'}\n\n{report(found)}\n")
    kept = print_bars(bars(found))
    save(arguments.save, {"run": found})
    return kept


class Saved(msgspec.Struct, frozen=True):
    """What :func:`run` has saved."""

    run: Run


def measure(plan: Plan) -> Run:
    """Measure in a process that has the host's BLAS: a library is preloaded at a process's start, or not at all."""
    command = [sys.executable, "-m", "bench.speculation_measure", msgspec.json.encode(plan).decode()]
    environment = blas.preload_environment(os.environ)
    output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout
    return msgspec.json.decode(output, type=Run)


def geometric_mean(ratios: Sequence[float]) -> float:
    """Of at least one."""
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


def best_mlx_lm(measured: Sequence[Measured]) -> Way | None:
    """The way of mlx-lm's fixed lengths that is fastest over all of ``measured``."""
    ways = [way for way in measured[0].answers if way.startswith("mlx-lm ")]
    return max(ways, key=lambda way: geometric_mean([one.speedup(way) for one in measured]), default=None)


def bars(run: Run) -> list[Bar]:
    """The promises that the run has figures for; those on speed are of the embedded pair."""
    found: list[Bar] = []
    for temperature, bound in ((0.0, 1.5), (0.8, 1.3)):
        plain = [one for one in run.measured if one.temperature == temperature and one.prompt_class != GUIDED]
        if not plain:
            continue
        where = "greedy" if temperature == 0 else f"temperature {temperature:g}"
        ours = geometric_mean([one.speedup(OURS) for one in plain])
        found.append(at_least(f"{where}: over plain decoding, geometric mean", ours, bound))
        classes = {one.prompt_class for one in plain}
        by_class = {
            name: geometric_mean([o.speedup(OURS) for o in plain if o.prompt_class == name]) for name in classes
        }
        worst = min(by_class, key=by_class.__getitem__)
        found.append(at_least(f"{where}: over plain decoding, {worst} (the least class)", by_class[worst], 0.97))
        peer = best_mlx_lm(plain)
        if peer is not None:
            over = geometric_mean([one.speedup(OURS, peer) for one in plain])
            found.append(at_least(f"{where}: over {peer}", over, 1.1))
    guided = [one for one in run.measured if one.prompt_class == GUIDED]
    if guided:
        edited = geometric_mean([one.speedup(LOOKUP) for one in guided])
        found.append(at_least(f"{GUIDED}: prompt lookup over plain decoding", edited, 2.0))
    greedy = [one for one in run.measured if one.temperature == 0]
    same = sum(one.answers[OURS].digest == one.answers[PLAIN].digest for one in greedy)
    if greedy:
        found.append(at_least("greedy answers that are plain decoding's, token for token", same / len(greedy), 1.0))
    return found


def report(run: Run) -> str:
    """A table for each temperature: tokens a second in every way, and what was accepted of whom."""
    return "\n\n".join(_table(run, temperature) for temperature in sorted({one.temperature for one in run.measured}))


def _table(run: Run, temperature: float) -> str:
    measured = [one for one in run.measured if one.temperature == temperature]
    ways = list(dict.fromkeys(way for one in measured for way in one.answers))
    columns = [f"temperature {temperature:g}", *(f"{way}, tokens/s" for way in ways)]
    columns += [f"{way} / plain" for way in ways if way != PLAIN] + ["accepted of draft", "of lookup"]
    names = list(dict.fromkeys(one.prompt_class for one in measured))
    groups = [(name, [one for one in measured if one.prompt_class == name]) for name in names]
    groups.append(("all but the last" if GUIDED in names else "all", [o for o in measured if o.prompt_class != GUIDED]))
    return markdown(columns, [_row(name, group, ways) for name, group in groups if group])


def _row(name: str, measured: Sequence[Measured], ways: Sequence[Way]) -> list[str]:
    cells = [name]
    for way in ways:
        seconds = [one.answers[way].token_s for one in measured if way in one.answers]
        cells.append(f"{1 / geometric_mean(seconds):.1f}" if seconds else "")
    for way in ways:
        speedups = [one.speedup(way) for one in measured if way in one.answers]
        if way != PLAIN:
            cells.append(f"{geometric_mean(speedups):.2f}" if speedups else "")
    counted = [one.answers[OURS].counters or wire.SpecCounters() for one in measured]
    total = sum(counted, wire.SpecCounters())
    cells.append(_share(total.draft_accepted, total.draft_rejected))
    cells.append(_share(total.lookup_accepted, total.lookup_rejected))
    return cells


def _share(accepted: int, rejected: int) -> str:
    return f"{accepted / (accepted + rejected):.2f} of {accepted + rejected}" if accepted + rejected else "–"
