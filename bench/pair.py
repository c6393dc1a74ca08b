"""``bench pair``: what speculation does for the embedded pair on this machine: acceptance, speed and identity.

Runs the interactive lane's engine on the held-out prompts, greedily, with speculation and without it in turn, so that
a noisy machine disturbs both alike. In a process of its own with OpenBLAS where the machine has one, as the host is.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import time
from collections.abc import Sequence

import msgspec

from bench.reporting import add_save, machine, save
from bench.statistics import median
from lanes import blas, embedded, wire
from lanes.engines.base import Engine, SequenceSpec, advance

MIN_ACCEPTANCE = 0.60
MIN_SPEEDUP = 1.3


class Answer(msgspec.Struct, frozen=True):
    """One greedy answer: its tokens, the seconds of decoding after the first token, and what was drafted for it."""

    token_ids: tuple[int, ...]
    decode_s: float
    counters: wire.SpecCounters


class Length(msgspec.Struct, frozen=True, kw_only=True):
    """All prompts at one bound of the draft length. A speedup is plain seconds over speculative seconds."""

    max_draft_tokens: int
    acceptance_ratio: float
    speedup_geometric_mean: float
    speedup_least: float
    speedup_most: float
    identical: int


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """The whole measurement."""

    prompts: int
    tokens: int
    blas: str | None
    plain_tokens_per_s: float
    lengths: tuple[Length, ...]

    @property
    def promises_kept(self) -> bool:
        """Acceptance and speed at the largest length, and identity at every one."""
        longest = self.lengths[-1]
        return (
            all(length.identical == self.prompts for length in self.lengths)
            and longest.acceptance_ratio >= MIN_ACCEPTANCE
            and longest.speedup_geometric_mean >= MIN_SPEEDUP
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's options."""
    parser.add_argument("--tokens", type=int, default=96, help="of each answer")
    parser.add_argument("--draft-lengths", type=int, nargs="+", default=[2, 4, 8])
    add_save(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print, save; returns 0 if the promises were kept."""
    found = measure(arguments.tokens, arguments.draft_lengths)
    print(f"{machine()}; {report(found)}")
    save(arguments.save, {"tokens": arguments.tokens, "pair": found})
    return 0 if found.promises_kept else 1


def answer(engine: Engine, prompt: tuple[int, ...], max_tokens: int, num_draft_tokens: int) -> Answer:
    """Run one sequence alone to its end."""
    engine.add(SequenceSpec("measured", prompt, max_tokens, wire.Sampling(temperature=0.0), num_draft_tokens))
    tokens: list[int] = []
    counters = wire.SpecCounters()
    started_s = None
    while engine.has_work():
        for emission in advance(engine):
            started_s = started_s or time.perf_counter()
            tokens += emission.token_ids
            counters = counters + emission.counters if emission.counters else counters
    return Answer(tuple(tokens), time.perf_counter() - (started_s or 0.0), counters)


def measure(max_tokens: int, draft_lengths: Sequence[int]) -> Pair:
    """Measure in a process that has the host's BLAS: a library is preloaded at a process's start, or not at all."""
    command = [sys.executable, "-m", "bench.pair", str(max_tokens), *map(str, sorted(draft_lengths))]
    environment = blas.preload_environment(os.environ)
    output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout
    return msgspec.json.decode(output, type=Pair)


def _measure_here(max_tokens: int, draft_lengths: Sequence[int]) -> Pair:
    # Here, because only this process needs mlx.
    from lanes.engines.speculative import SpeculativeEngine  # noqa: PLC0415
    from lanes.host.models import load_pair  # noqa: PLC0415

    pair = load_pair(wire.ModelSpec("opta-tiny", "embedded:target", "embedded:draft"))
    engine = SpeculativeEngine(pair.target, pair.draft, pair.eos, max(draft_lengths))
    prompts = [tuple(pair.tokenizer.encode(prompt.prompt)) for prompt in embedded.held_out_prompts()]
    engine.calibrate(prompts[0][:32])
    plain: list[Answer] = []
    speculative: dict[int, list[Answer]] = {length: [] for length in draft_lengths}
    for prompt in prompts:
        plain.append(answer(engine, prompt, max_tokens, 0))
        for length, answers in speculative.items():
            answers.append(answer(engine, prompt, max_tokens, length))
    return Pair(
        prompts=len(prompts),
        tokens=sum(len(one.token_ids) for one in plain),
        blas=blas.loaded_blas(),
        plain_tokens_per_s=round(median([(len(one.token_ids) - 1) / one.decode_s for one in plain]), 1),
        lengths=tuple(_length(length, plain, answers) for length, answers in speculative.items()),
    )


def _length(max_draft_tokens: int, plain: Sequence[Answer], speculative: Sequence[Answer]) -> Length:
    counters = sum((one.counters for one in speculative), wire.SpecCounters())
    speedups = [one.decode_s / other.decode_s for one, other in zip(plain, speculative, strict=True)]
    return Length(
        max_draft_tokens=max_draft_tokens,
        acceptance_ratio=round(counters.acceptance_ratio or 0.0, 4),
        speedup_geometric_mean=round(math.exp(sum(map(math.log, speedups)) / len(speedups)), 3),
        speedup_least=round(min(speedups), 3),
        speedup_most=round(max(speedups), 3),
        identical=sum(one.token_ids == other.token_ids for one, other in zip(plain, speculative, strict=True)),
    )


def report(pair: Pair) -> str:
    """Lines to print."""
    lines = [
        f"{pair.prompts} held-out prompts, {pair.tokens} tokens, BLAS {pair.blas or 'none needed'}, "
        f"plain decoding {pair.plain_tokens_per_s:g} tokens/s",
        "| draft tokens, at most | acceptance ratio | speedup, geometric mean | least | most | identical |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {one.max_draft_tokens} | {one.acceptance_ratio:.3f} | {one.speedup_geometric_mean:.2f} | "
        f"{one.speedup_least:.2f} | {one.speedup_most:.2f} | {one.identical} of {pair.prompts} |"
        for one in pair.lengths
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:]]
    sys.stdout.buffer.write(msgspec.json.encode(_measure_here(numbers[0], numbers[1:])))
