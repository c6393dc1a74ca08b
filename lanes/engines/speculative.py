"""The interactive lane's engine: single-stream decoding with speculation, in bounded steps.

A sequence goes through *prefill* (chunks of its prompt through the target), gives its first token from the target
alone, lets the draft *catch up* with the prompt, and then decodes in *rounds*: a draft model, or the text itself
(:mod:`lanes.engines.prompt_lookup`), proposes ``k`` tokens, the target scores them all in one pass, and those that hold
are taken together with the token that follows them.

What holds, so that speculation changes the speed and nothing else, up to the last bits of the device's arithmetic:

- a greedy request, and one whose client named a seed: what equals the target's own choices, which are those of plain
  decoding (:mod:`lanes.engines.sampling`). The text is the same however much was drafted, and by whom;
- of any other, what a draft model proposes, by rejection sampling (:mod:`lanes.engines.rejection`): the text's
  distribution is that of plain decoding. Of a token that was looked up there is nothing to gain: it is accepted with
  the target's probability of it either way.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx

from lanes.engines import cpu_rope
from lanes.engines.base import Emission, Handover, SequenceSpec, until_eos
from lanes.engines.prompt_caches import PromptCaches
from lanes.engines.proposing import PLAIN, PairCosts, Plan
from lanes.engines.speculative_run import Round, Run
from lanes.wire import FinishReason, Sampling, SpecCounters

log = logging.getLogger(__name__)

CALIBRATION_ROUNDS = 2
_GREEDY = Sampling(temperature=0.0)


class SpeculativeEngine:
    """Steps its sequences in turn, one bounded piece each; one sequence at a time is the usual case.

    Args:
        target: an mlx-lm model; shared with other engines, never changed.
        draft: an mlx-lm model of the same tokenizer, or None.
        eos: token ids that end an answer.
        max_draft_tokens: upper bound of a round, whatever a request asks for.
        prompt_caches: where sequences begin, and leave what they computed; None: nowhere.
        prompt_lookup: let the text itself propose, too; the target's cache must be trimmable.
    """

    runs_ahead = False

    def __init__(
        self,
        target: Any,
        draft: Any | None,
        eos: frozenset[int],
        max_draft_tokens: int,
        prompt_caches: PromptCaches | None = None,
        *,
        prompt_lookup: bool = False,
    ) -> None:
        self._target = target
        self._draft = draft
        self._eos = eos
        self._costs = PairCosts(max_draft_tokens, draft_model=draft is not None, prompt_lookup=prompt_lookup)
        self._prompt_caches = prompt_caches if prompt_caches is not None else PromptCaches()
        self._runs: dict[str, Run] = {}
        self._turns: deque[str] = deque()
        self._under_way: tuple[Run, _Settle] | None = None
        self.computed_tokens = 0

    def add(self, spec: SequenceSpec) -> None:
        """See :class:`lanes.engines.base.Engine`."""
        if spec.request_id in self._runs:
            raise ValueError(f"request id {spec.request_id!r} is in use")
        self._runs[spec.request_id] = run = Run(spec, self._target, self._draft, self._costs)
        run.resume(self._prompt_caches)
        self._turns.append(spec.request_id)

    def cancel(self, request_id: str) -> None:
        """See :class:`lanes.engines.base.Engine`."""
        run = self._forget(request_id)
        if run is not None:
            run.leave(self._prompt_caches)

    def release(self, request_id: str) -> Handover | None:
        """See :class:`lanes.engines.base.Releasing`."""
        run = self._runs.get(request_id)
        if run is None or not run.begun:
            return None
        self.cancel(request_id)
        return run.handover()

    def has_work(self) -> bool:
        """See :class:`lanes.engines.base.Engine`."""
        return bool(self._runs)

    def active(self) -> int:
        """See :class:`lanes.engines.base.Engine`."""
        return len(self._runs)

    def step(self, limit_s: float | None = None) -> list[Emission]:
        """One prefill chunk or one round of the sequence whose turn it is."""
        request_id = self._turns[0]
        self._turns.rotate(-1)
        run = self._runs[request_id]
        try:
            self._under_way = (run, self._start(run))
        except Exception as exc:  # its caches are its own: the other sequences go on
            return [self._failed(run, exc)]
        return []

    def finish(self, since_s: float) -> list[Emission]:
        """See :class:`lanes.engines.base.Engine`."""
        if self._under_way is None:
            return []
        (run, settle), self._under_way = self._under_way, None
        try:
            emission = settle(since_s)
        except Exception as exc:
            return [self._failed(run, exc)]
        if emission is None:
            return []
        if emission.finish is not None:
            self.cancel(run.spec.request_id)
        return [emission]

    def close(self) -> None:
        """See :class:`lanes.engines.base.Engine`."""
        self._runs.clear()
        self._turns.clear()
        self._under_way = None
        self._prompt_caches.clear()
        cpu_rope.forget()

    def calibrate(self, prompt: tuple[int, ...]) -> None:
        """:meth:`calibrating`, all of it at once."""
        for _ in self.calibrating(prompt):
            pass

    def calibrating(self, prompt: tuple[int, ...]) -> Iterator[None]:
        """Measure what a round of each kind costs on this device; yields before each kind.

        Runs greedy rounds on ``prompt`` (at least one token) and forgets them.
        """
        plans, rounds = self._kinds_of_round(), CALIBRATION_ROUNDS + 1
        tokens = 1 + rounds * sum(plan.draft_tokens + 1 for plan in plans)
        spec = SequenceSpec("calibration", prompt, tokens, _GREEDY, max(plan.draft_tokens for plan in plans))
        run = Run(spec, self._target, self._draft, self._costs)
        while not run.prefilled:
            run.prefill()
        run.first_token()
        for plan in plans:
            yield
            seconds = []
            for _ in range(rounds):
                started_s = time.perf_counter()
                run.round(plan)
                seconds.append(time.perf_counter() - started_s)
            # The first may compile, or bring the draft up to the text; and a hiccup would be remembered for long.
            self._costs.observe(plan.proposer, plan.draft_tokens, min(seconds[1:]))

    def _kinds_of_round(self) -> list[Plan]:
        """What a round may be: plain, and of each proposer the lengths between which costs may be interpolated."""
        plans = [PLAIN]
        for proposer in self._costs.proposers:
            longest = self._costs.of(proposer).max_draft_tokens
            # What is looked up costs no more than its verification: its ends are enough.
            lengths = {1} if proposer == "prompt_lookup" else {k for k in range(1, longest) if k.bit_count() == 1}
            plans += [Plan(proposer, k) for k in sorted(lengths | {longest})]
        return plans

    def _start(self, run: Run) -> _Settle:
        """Dispatch the next piece of ``run``; what is returned waits for it, and says what it brought."""
        if not run.prefilled:
            return self._start_prefill(run)
        plan, usual = run.plan()
        round_ = run.draft(plan)

        def settle(since_s: float) -> Emission:
            chosen, accepted = run.verify(round_)
            if usual:
                self._costs.observe(plan.proposer, round_.draft_tokens, time.perf_counter() - since_s)
                run.learn(round_, accepted)
            return self._emit(run, chosen, round_, accepted)

        return settle

    def _start_prefill(self, run: Run) -> _Settle:
        tokens, arrays = run.prefill()

        def settle(_: float) -> Emission | None:
            mx.eval(arrays)
            self.computed_tokens += tokens
            return self._emit(run, [run.first_token()], None, 0) if run.prefilled else None

        return settle

    def _failed(self, run: Run, exc: Exception) -> Emission:
        request_id = run.spec.request_id
        log.error("a step of request %s failed", request_id, exc_info=exc)
        self._forget(request_id)
        self._prompt_caches.clear()  # what it began with may be at fault
        return Emission(request_id, error=f"{type(exc).__name__}: {exc}")

    def _forget(self, request_id: str) -> Run | None:
        run = self._runs.pop(request_id, None)
        if run is not None:
            self._turns.remove(request_id)
        if not self._runs:
            cpu_rope.forget()
        return run

    def _emit(self, run: Run, chosen: list[int], round_: Round | None, accepted: int) -> Emission:
        """End the sequence where it must end, and account for every drafted token."""
        kept = until_eos(chosen, self._eos)
        token_ids = tuple(chosen[:kept])
        cached_tokens = 0 if run.begun else run.cached_tokens
        run.emitted += kept
        run.begun = True
        self.computed_tokens += kept
        finish: FinishReason | None = None
        if token_ids[-1] in self._eos:
            finish = "stop"
        elif run.emitted >= run.spec.max_tokens:
            finish = "length"
        counters = None
        if run.speculates:
            counters = round_.counters(min(accepted, kept), cut_short=kept < len(chosen)) if round_ else SpecCounters()
        return Emission(
            run.spec.request_id, token_ids, min(accepted, kept), counters, finish, cached_tokens=cached_tokens
        )


_Settle = Callable[[float], Emission | None]
"""Waits for a piece that was dispatched; see ``since_s`` of :meth:`lanes.engines.base.Engine.finish`."""
