"""``python -m bench.speculation_measure PLAN``: the measuring process of :mod:`bench.speculation`."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Final

import mlx.core as mx
import msgspec
from mlx_lm.generate import speculative_generate_step
from mlx_lm.sample_utils import make_sampler

from bench.prompts import Prompt, load
from bench.speculation import DRAFT, GUIDED, LOOKUP, OURS, PLAIN, Answer, Measured, Plan, Run, Way
from lanes import blas, wire
from lanes.engines.base import SequenceSpec, advance
from lanes.engines.speculative import SpeculativeEngine
from lanes.host.models import Pair, load_pair, probe_prompt
from lanes.host.probe import versions
from lanes.host.residents import _prepare_device
from lanes.wire import Sampling

NO_EOS: Final[frozenset[int]] = frozenset()
RAISE: Final = 1e4
"""Added to the logit of the token that is asked for: its probability is 1, whatever the temperature."""


class Guided:
    """A target that answers as it is asked: its logits are its own, but for the token that comes next in ``answer``."""

    def __init__(self, target: Any, prompt_tokens: int, answer: Sequence[int]) -> None:
        self._target = target
        self._first = prompt_tokens
        self._answer = answer

    def __call__(self, inputs: mx.array, cache: list[Any]) -> mx.array:
        """Logits, as the target gives them."""
        place = cache[0].offset + 1 - self._first
        logits: mx.array = self._target(inputs, cache=cache)
        known = [(row, self._answer[place + row]) for row in range(inputs.shape[1]) if self._has(place + row)]
        if not known:
            return logits
        rows, tokens = zip(*known, strict=True)
        return logits.at[0, mx.array(rows), mx.array(tokens)].add(RAISE)

    def _has(self, place: int) -> bool:
        return 0 <= place < len(self._answer)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)


class Bench:
    """One pair, and the ways to decode with it."""

    def __init__(self, pair: Pair, plan: Plan) -> None:
        self._pair = pair
        self._plan = plan
        drafted = plan.max_draft_tokens
        self._engines = {
            OURS: SpeculativeEngine(pair.target, pair.draft, NO_EOS, drafted, prompt_lookup=True),
            DRAFT: SpeculativeEngine(pair.target, pair.draft, NO_EOS, drafted),
            LOOKUP: SpeculativeEngine(pair.target, None, NO_EOS, drafted, prompt_lookup=True),
        }
        for engine in self._engines.values():
            engine.calibrate(tuple(probe_prompt(pair.tokenizer)))

    def prompts(self) -> Iterator[Measured]:
        """Measure every prompt at every temperature, when every way has been gone once: a GPU compiles on the way."""
        for temperature in self._plan.temperatures:
            self._measured("", load(["code"])["code"][-1], Sampling(temperature=temperature, seeded=False))
        for name, prompts in load(self._plan.classes).items():  # type: ignore[arg-type]
            for number, prompt in enumerate(prompts):
                for temperature in self._plan.temperatures:
                    sampling = Sampling(temperature=temperature, seed=number, seeded=False)
                    yield self._measured(name, prompt, sampling)
                    if prompt.answer is not None and temperature == 0:
                        yield self._edited(prompt, sampling)

    def _measured(self, name: str, prompt: Prompt, sampling: Sampling) -> Measured:
        tokens = self._tokens(prompt)
        ways: dict[Way, Callable[[], Answer]] = {
            PLAIN: lambda: self._ours(OURS, tokens, sampling, self._plan.tokens, 0),
            OURS: lambda: self._ours(OURS, tokens, sampling, self._plan.tokens),
            DRAFT: lambda: self._ours(DRAFT, tokens, sampling, self._plan.tokens),
        }
        for length in self._plan.mlx_lm_lengths:
            ways[f"mlx-lm {length}"] = lambda length=length: self._mlx_lm(tokens, sampling, length)  # type: ignore[misc]
        return self._fastest(name, prompt, sampling, ways)

    def _edited(self, prompt: Prompt, sampling: Sampling) -> Measured:
        tokens = self._tokens(prompt)
        whole = self._pair.tokenizer.encode((prompt.text or "") + (prompt.answer or ""))
        answer = whole[len(tokens) :]
        guided = Guided(self._pair.target, len(tokens), answer)
        for engine in self._engines.values():
            engine._target = guided
        ways = {
            PLAIN: lambda: self._ours(OURS, tokens, sampling, len(answer), 0),
            OURS: lambda: self._ours(OURS, tokens, sampling, len(answer)),
            LOOKUP: lambda: self._ours(LOOKUP, tokens, sampling, len(answer)),
        }
        try:
            return self._fastest(GUIDED, prompt, sampling, ways)
        finally:
            for engine in self._engines.values():
                engine._target = self._pair.target

    def _fastest(
        self, name: str, prompt: Prompt, sampling: Sampling, ways: dict[Way, Callable[[], Answer]]
    ) -> Measured:
        runs = [{way: decode() for way, decode in ways.items()} for _ in range(self._plan.repeats)]
        fastest = {way: min((run[way] for run in runs), key=lambda answer: answer.token_s) for way in ways}
        return Measured(prompt_class=name, prompt=prompt.id, temperature=sampling.temperature, answers=fastest)

    def _tokens(self, prompt: Prompt) -> tuple[int, ...]:
        tokenizer = self._pair.tokenizer
        if prompt.text is not None:
            return tuple(tokenizer.encode(prompt.text))
        return tuple(tokenizer.apply_chat_template(prompt.chat(), add_generation_prompt=True))

    def _ours(
        self, way: Way, prompt: tuple[int, ...], sampling: Sampling, max_tokens: int, drafted: int | None = None
    ) -> Answer:
        engine = self._engines[way]
        engine.add(
            SequenceSpec(
                "measured", prompt, max_tokens, sampling, self._plan.max_draft_tokens if drafted is None else drafted
            )
        )
        tokens: list[int] = []
        counters = wire.SpecCounters()
        started_s = 0.0
        while engine.has_work():
            for emission in advance(engine):
                started_s = started_s or time.perf_counter()
                tokens += emission.token_ids
                counters = counters + emission.counters if emission.counters else counters
        return _answer(tokens, time.perf_counter() - started_s, counters)

    def _mlx_lm(self, prompt: tuple[int, ...], sampling: Sampling, length: int) -> Answer:
        mx.random.seed(sampling.seed)
        generated = speculative_generate_step(
            mx.array(prompt),
            self._pair.target,
            self._pair.draft,
            num_draft_tokens=length,
            max_tokens=self._plan.tokens,
            sampler=make_sampler(temp=sampling.temperature),
        )
        tokens = [int(next(generated)[0])]
        started_s = time.perf_counter()
        tokens += [int(token) for token, _, _ in generated]
        return _answer(tokens, time.perf_counter() - started_s)


def _answer(tokens: list[int], seconds: float, counters: wire.SpecCounters | None = None) -> Answer:
    digest = hashlib.sha256(repr(tokens).encode()).hexdigest()[:16]
    return Answer(token_s=seconds / (len(tokens) - 1), tokens=len(tokens), digest=digest, counters=counters)


def main() -> None:
    """Measure what standard input's plan says, and print it as JSON."""
    plan = msgspec.json.decode(sys.argv[1], type=Plan)
    _prepare_device()
    pair = load_pair(wire.ModelSpec("measured", plan.target, plan.draft))
    measured = []
    with suppress(KeyboardInterrupt):  # what has been measured until then is worth having
        for one in Bench(pair, plan).prompts():
            measured.append(one)
            figures = ", ".join(f"{way} {1 / answer.token_s:.1f}" for way, answer in one.answers.items())
            print(f"{one.prompt_class} {one.prompt} {one.temperature:g}: {figures}", file=sys.stderr, flush=True)
    run = Run(device=versions().device, blas=blas.loaded_blas(), plan=plan, measured=tuple(measured))
    sys.stdout.buffer.write(msgspec.json.encode(run))


if __name__ == "__main__":
    main()
