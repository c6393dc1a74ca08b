"""The interactive lane's engine: single-stream decoding with a draft model, in bounded steps.

A sequence goes through *prefill* (chunks of its prompt through the target), gives its first token from the target
alone, lets the draft *catch up* with the prompt, and then decodes in *rounds*: the draft proposes ``k`` tokens, the
target scores them all in one pass, and the longest prefix that equals the target's own choices is taken together with
the target's next token. The choices are the ones that plain decoding would make (see :mod:`lanes.engines.sampling`), so
speculation changes the speed and nothing else, up to the last bits of the device's arithmetic.

Method: Leviathan, Kalman, Matias, "Fast Inference from Transformers via Speculative Decoding", ICML 2023; at a
temperature, draft and target share their Gumbel noise instead of rejecting and resampling.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import Any, cast

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache, trim_prompt_cache

from lanes.engines.base import Emission, Handover, SequenceSpec, until_eos
from lanes.engines.draft_length import DraftLength, RoundCosts
from lanes.engines.sampling import TokenChooser
from lanes.wire import FinishReason, Sampling, SpecCounters

log = logging.getLogger(__name__)

PREFILL_CHUNK_TOKENS = 256
LAST_CHUNK_TOKENS = 128
"""The last chunk is computed with logits for all its rows: a tenth more work, and for a short prompt one pass less."""

CALIBRATION_ROUNDS = 2
_GREEDY = Sampling(temperature=0.0)


class SpeculativeEngine:
    """Steps its sequences in turn, one bounded piece each; one sequence at a time is the usual case.

    Args:
        target: an mlx-lm model; shared with other engines, never changed.
        draft: an mlx-lm model of the same tokenizer, or None for plain decoding.
        eos: token ids that end an answer.
        max_draft_tokens: upper bound of a round, whatever a request asks for.
    """

    def __init__(self, target: Any, draft: Any | None, eos: frozenset[int], max_draft_tokens: int) -> None:
        self._target = target
        self._draft = draft
        self._eos = eos
        self._costs = RoundCosts(max_draft_tokens if draft is not None else 0)
        self._runs: dict[str, _Run] = {}
        self._turns: deque[str] = deque()

    def add(self, spec: SequenceSpec) -> None:
        """See :class:`lanes.engines.base.Engine`."""
        if spec.request_id in self._runs:
            raise ValueError(f"request id {spec.request_id!r} is in use")
        self._runs[spec.request_id] = _Run(spec, self._target, self._draft, self._costs)
        self._turns.append(spec.request_id)

    def cancel(self, request_id: str) -> None:
        """See :class:`lanes.engines.base.Engine`."""
        if self._runs.pop(request_id, None) is not None:
            self._turns.remove(request_id)

    def release(self, request_id: str) -> Handover | None:
        """See :class:`lanes.engines.base.Releasing`."""
        run = self._runs.get(request_id)
        if run is None or not run.emitted:
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
        """One prefill chunk or one round of the sequence whose turn it is; ends with its tokens read."""
        request_id = self._turns[0]
        self._turns.rotate(-1)
        try:
            emission = self._advance(self._runs[request_id])
        except Exception as exc:  # its caches are its own: the other sequences go on
            log.exception("a step of request %s failed", request_id)
            emission = Emission(request_id, error=f"{type(exc).__name__}: {exc}")
        if emission is None:
            return []
        if emission.finish is not None or emission.error is not None:
            self.cancel(request_id)
        return [emission]

    def close(self) -> None:
        """See :class:`lanes.engines.base.Engine`."""
        self._runs.clear()
        self._turns.clear()

    def calibrate(self, prompt: tuple[int, ...]) -> None:
        """Measure what a round of each length costs on this device; compiles every shape on the way.

        Runs greedy rounds on ``prompt`` (at least one token) and forgets them.
        """
        for draft_tokens in self.draft_lengths():
            self.calibrate_length(prompt, draft_tokens)

    def draft_lengths(self) -> range:
        """How many tokens a round may draft."""
        return range(self._costs.max_draft_tokens + 1)

    def calibrate_length(self, prompt: tuple[int, ...], draft_tokens: int) -> None:
        """:meth:`calibrate` for rounds of one length."""
        longest = self._costs.max_draft_tokens + 2
        spec = SequenceSpec("calibration", prompt, longest * (CALIBRATION_ROUNDS + 2), _GREEDY, draft_tokens)
        run = _Run(spec, self._target, self._draft, RoundCosts(0))
        while not run.prefilled:
            run.prefill()
        run.round(0)
        run.round(draft_tokens)
        for _ in range(CALIBRATION_ROUNDS):
            started_s = time.perf_counter()
            run.round(draft_tokens)
            self._costs.observe(draft_tokens, time.perf_counter() - started_s)

    def _advance(self, run: _Run) -> Emission | None:
        if not run.prefilled:
            run.prefill()
            return self._emit(run, [run.first_token()], 0, 0) if run.prefilled else None
        caught_up = run.speculates and run.catch_up()
        draft_tokens = run.length.choose(run.room) if caught_up else 0
        started_s = time.perf_counter()
        chosen, accepted = run.round(draft_tokens)
        if caught_up or not run.speculates:
            self._costs.observe(draft_tokens, time.perf_counter() - started_s)
            run.length.observe(draft_tokens, accepted)
        return self._emit(run, chosen, draft_tokens, accepted)

    def _emit(self, run: _Run, chosen: list[int], drafted: int, accepted: int) -> Emission:
        """End the sequence where it must end, and account for every drafted token."""
        kept = until_eos(chosen, self._eos)
        token_ids = tuple(chosen[:kept])
        run.emitted += kept
        finish: FinishReason | None = None
        if token_ids[-1] in self._eos:
            finish = "stop"
        elif run.emitted >= run.spec.max_tokens:
            finish = "length"
        counters = None
        if run.speculates:
            delivered = min(accepted, kept)
            cut_short = kept < len(chosen)
            lost = drafted - delivered
            counters = SpecCounters(
                rounds=int(drafted > 0),
                proposed=drafted,
                accepted=delivered,
                rejected=0 if cut_short else lost,
                ignored=lost if cut_short else 0,
            )
        return Emission(run.spec.request_id, token_ids, min(accepted, kept), counters, finish)


class _Run:
    """One sequence. Between rounds the target's cache holds all tokens but the last, the draft's a prefix of them."""

    def __init__(self, spec: SequenceSpec, target: Any, draft: Any | None, costs: RoundCosts) -> None:
        self.spec = spec
        self.emitted = 0
        self.speculates = draft is not None and spec.num_draft_tokens > 0
        self.length = DraftLength(costs)
        self._tokens = list(spec.prompt)
        self._chooser = TokenChooser(spec.sampling, len(spec.prompt))
        self._target = target
        self._target_cache = make_prompt_cache(target)
        self._target_tokens = 0
        self._draft: Any = draft
        self._draft_cache = make_prompt_cache(draft) if self.speculates else []
        self._draft_tokens = 0
        self._last_logits: mx.array | None = None

    @property
    def prefilled(self) -> bool:
        """True once the target has seen the whole prompt."""
        return self._target_tokens >= len(self.spec.prompt)

    @property
    def room(self) -> int:
        """Draft tokens that the next round could use: the request's bound, and never more than can be delivered."""
        return min(self.spec.num_draft_tokens, self.spec.max_tokens - self.emitted - 1)

    def handover(self) -> Handover:
        """All that another engine needs to go on with the sequence."""
        return Handover(self.spec, tuple(self._tokens), self._target_cache)

    def prefill(self) -> None:
        """Run the next chunk of the prompt through the target."""
        remaining = len(self._tokens) - self._target_tokens
        last = remaining <= LAST_CHUNK_TOKENS
        size = remaining if last else min(PREFILL_CHUNK_TOKENS, remaining - LAST_CHUNK_TOKENS)
        chunk = mx.array(self._tokens[self._target_tokens : self._target_tokens + size])
        logits = self._target(chunk[None], cache=self._target_cache)
        self._target_tokens += size
        if last:
            self._last_logits = logits[0, -1:]
        else:
            mx.eval([layer.state for layer in self._target_cache])

    def first_token(self) -> int:
        """The token that follows the prompt."""
        logits, self._last_logits = self._last_logits, None
        if logits is None:
            raise RuntimeError("the first token is read once, right after prefill")
        (token,) = _ints(self._chooser.choose(logits, len(self._tokens), self._history()))
        self._tokens.append(token)
        return token

    def catch_up(self) -> bool:
        """Bring the draft's cache within one chunk of the text; True if a round may draft now."""
        behind = len(self._tokens) - self._draft_tokens
        if behind <= LAST_CHUNK_TOKENS:
            return True
        size = min(PREFILL_CHUNK_TOKENS, behind - 1)
        chunk = mx.array(self._tokens[self._draft_tokens : self._draft_tokens + size])
        self._draft(chunk[None], cache=self._draft_cache)
        mx.eval([layer.state for layer in self._draft_cache])
        self._draft_tokens += size
        return len(self._tokens) - self._draft_tokens <= LAST_CHUNK_TOKENS

    def round(self, draft_tokens: int) -> tuple[list[int], int]:
        """Draft ``draft_tokens``, verify, take. Returns the new tokens and how many of them were drafted."""
        position = len(self._tokens)
        drafted = self._propose(draft_tokens)
        inputs = mx.concatenate([mx.array(self._tokens[-1:]), *drafted])
        logits = self._target(inputs[None], cache=self._target_cache)[0]
        chosen = self._choose_all(logits, position, drafted)
        proposed = mx.concatenate(drafted) if drafted else mx.array([], dtype=mx.uint32)
        mx.eval(chosen, proposed)
        choices, proposals = _ints(chosen), _ints(proposed)

        accepted = 0
        while accepted < draft_tokens and choices[accepted] == proposals[accepted]:
            accepted += 1
        taken = choices[: accepted + 1]
        self._tokens += taken
        if accepted < draft_tokens:
            trim_prompt_cache(self._target_cache, draft_tokens - accepted)
        if draft_tokens:  # the draft has seen its own proposals but the last
            self._draft_tokens = position + min(accepted, draft_tokens - 1)
            trim_prompt_cache(self._draft_cache, max(draft_tokens - 1 - accepted, 0))
        return taken, accepted

    def _propose(self, draft_tokens: int) -> list[mx.array]:
        """``draft_tokens`` arrays of shape ``(1,)``, not yet evaluated."""
        drafted: list[mx.array] = []
        inputs = mx.array(self._tokens[self._draft_tokens :])
        for ahead in range(draft_tokens):
            logits = self._draft(inputs[None], cache=self._draft_cache)[0, -1:]
            token = self._chooser.choose(logits, len(self._tokens) + ahead, self._history(drafted))
            # The device drafts while the next step's graph is built.
            mx.async_eval(token)  # type: ignore[no-untyped-call]
            drafted.append(token)
            inputs = token
        return drafted

    def _choose_all(self, logits: mx.array, position: int, drafted: list[mx.array]) -> mx.array:
        if not self._chooser.needs_history:
            return self._chooser.choose(logits, position)
        return mx.concatenate(
            [
                self._chooser.choose(logits[row : row + 1], position + row, self._history(drafted[:row]))
                for row in range(len(drafted) + 1)
            ]
        )

    def _history(self, drafted: list[mx.array] | None = None) -> mx.array | None:
        if not self._chooser.needs_history:
            return None
        return mx.concatenate([mx.array(self._tokens, dtype=mx.uint32), *(drafted or ())])


def _ints(tokens: mx.array) -> list[int]:
    return cast(list[int], tokens.tolist())
