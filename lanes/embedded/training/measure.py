"""What speculation does for the embedded pair on this machine: acceptance, speed and identity, prompt by prompt.

Runs the interactive lane's engine on the held-out prompts, greedily, with speculation and without it in turn, so that
a noisy machine disturbs both alike. With OpenBLAS where the machine has one, as the host does.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Sequence

import mlx.core as mx
import msgspec

from lanes import blas, embedded, wire
from lanes.engines.base import SequenceSpec
from lanes.engines.speculative import SpeculativeEngine
from lanes.host.models import load_pair

_CHILD = "OPTA_MEASURE_CHILD"


class Answer(msgspec.Struct, frozen=True):
    """One greedy answer: its tokens, the seconds of decoding after the first token, and what was drafted for it."""

    token_ids: tuple[int, ...]
    decode_s: float
    counters: wire.SpecCounters


def answer(engine: SpeculativeEngine, prompt: tuple[int, ...], max_tokens: int, num_draft_tokens: int) -> Answer:
    """Run one sequence alone to its end."""
    engine.add(SequenceSpec("measured", prompt, max_tokens, wire.Sampling(temperature=0.0), num_draft_tokens))
    tokens: list[int] = []
    counters = wire.SpecCounters()
    started_s = None
    while engine.has_work():
        for emission in engine.step():
            started_s = started_s or time.perf_counter()
            tokens += emission.token_ids
            counters = counters + emission.counters if emission.counters else counters
    return Answer(tuple(tokens), time.perf_counter() - (started_s or 0.0), counters)


def measure(max_tokens: int, draft_lengths: Sequence[int]) -> dict[str, object]:
    """Every prompt with each draft length and with plain decoding; ratios are plain time over speculative time."""
    pair = load_pair(wire.ModelSpec("opta-tiny", "embedded:target", "embedded:draft"))
    engine = SpeculativeEngine(pair.target, pair.draft, pair.eos, max(draft_lengths))
    prompts = [tuple(pair.tokenizer.encode(prompt.prompt)) for prompt in embedded.held_out_prompts()]
    engine.calibrate(prompts[0][:32])
    total = {k: wire.SpecCounters() for k in draft_lengths}
    ratios: dict[int, list[float]] = {k: [] for k in draft_lengths}
    identical = tokens = 0
    plain_s = 0.0
    for prompt in prompts:
        plain = answer(engine, prompt, max_tokens, 0)
        tokens += len(plain.token_ids)
        plain_s += plain.decode_s
        for k in draft_lengths:
            speculative = answer(engine, prompt, max_tokens, k)
            identical += speculative.token_ids == plain.token_ids
            total[k] += speculative.counters
            if len(plain.token_ids) > 1:
                ratios[k].append(plain.decode_s / speculative.decode_s)
    return {
        "prompts": len(prompts),
        "tokens": tokens,
        "blas": blas.loaded_blas(),
        "device": str(mx.default_device()),
        "plain_tokens_per_s": round(tokens / plain_s, 1),
        "identical": f"{identical} of {len(prompts) * len(draft_lengths)}",
        "acceptance_ratio": {k: round(c.accepted / max(c.accepted + c.rejected, 1), 4) for k, c in total.items()},
        "speedup_geometric_mean": {
            k: round(math.exp(sum(map(math.log, values)) / len(values)), 3) for k, values in ratios.items()
        },
        "speedup_range": {k: [round(min(values), 2), round(max(values), 2)] for k, values in ratios.items()},
    }


def main() -> None:
    """Print the measurements as JSON."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--draft-lengths", type=int, nargs="+", default=[2, 4, 6, 8])
    arguments = parser.parse_args()
    if _CHILD not in os.environ:  # a BLAS is preloaded at a process's start, or not at all
        environment = blas.preload_environment({**os.environ, _CHILD: "1"})
        command = [sys.executable, "-m", "lanes.embedded.training.measure", *sys.argv[1:]]
        raise SystemExit(subprocess.run(command, env=environment, check=False).returncode)  # noqa: S603 - ourselves
    print(json.dumps(measure(arguments.max_tokens, arguments.draft_lengths), indent=1))


if __name__ == "__main__":
    main()
