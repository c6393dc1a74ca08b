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
from collections.abc import Callable
from typing import Any, NamedTuple, cast

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

    runs_ahead = False

    def __init__(self, target: Any, draft: Any | None, eos: frozenset[int], max_draft_tokens: int) -> None:
        self._target = target
        self._draft = draft
        self._eos = eos
        self._costs = RoundCosts(max_draft_tokens if draft is not None else 0)
        self._runs: dict[str, _Run] = {}
        self._turns: deque[str] = deque()
        self._under_way: tuple[_Run, _Settle] | None = None
        self.computed_tokens = 0

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
        run.first_token()
        run.round(0)
        run.round(draft_tokens)
        for _ in range(CALIBRATION_ROUNDS):
            started_s = time.perf_counter()
            run.round(draft_tokens)
            self._costs.observe(draft_tokens, time.perf_counter() - started_s)

    def _start(self, run: _Run) -> _Settle:
        """Dispatch the next piece of ``run``; what is returned waits for it, and says what it brought."""
        if not run.prefilled:
            return self._start_prefill(run)
        caught_up = run.speculates and run.catch_up()
        draft_tokens = run.length.choose(run.room) if caught_up else 0
        round_ = run.draft(draft_tokens)

        def settle(since_s: float) -> Emission:
            chosen, accepted = run.verify(round_)
            if caught_up or not run.speculates:
                self._costs.observe(draft_tokens, time.perf_counter() - since_s)
                run.length.observe(draft_tokens, accepted)
            return self._emit(run, chosen, draft_tokens, accepted)

        return settle

    def _start_prefill(self, run: _Run) -> _Settle:
        tokens, arrays = run.prefill()

        def settle(_: float) -> Emission | None:
            mx.eval(arrays)
            self.computed_tokens += tokens
            return self._emit(run, [run.first_token()], 0, 0) if run.prefilled else None

        return settle

    def _failed(self, run: _Run, exc: Exception) -> Emission:
        request_id = run.spec.request_id
        log.error("a step of request %s failed", request_id, exc_info=exc)
        self.cancel(request_id)
        return Emission(request_id, error=f"{type(exc).__name__}: {exc}")

    def _emit(self, run: _Run, chosen: list[int], drafted: int, accepted: int) -> Emission:
        """End the sequence where it must end, and account for every drafted token."""
        kept = until_eos(chosen, self._eos)
        token_ids = tuple(chosen[:kept])
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


_Settle = Callable[[float], Emission | None]
"""Waits for a piece that was dispatched; see ``since_s`` of :meth:`lanes.engines.base.Engine.finish`."""


class _Round(NamedTuple):
    """A round that was dispatched: what the draft proposes, and what the target chooses at each place."""

    position: int
    proposed: list[mx.array]
    chosen: mx.array


class _Run:
    """One sequence. Between rounds the target's cache holds all tokens but the last, the draft's a prefix of them."""

    def __init__(self, spec: SequenceSpec, target: Any, draft: Any | None, costs: RoundCosts) -> None:
        self.spec = spec
        self.emitted = len(spec.emitted)
        self.begun = False
        self.speculates = draft is not None and spec.num_draft_tokens > 0
        self.length = DraftLength(costs)
        self._tokens = list(spec.token_ids)
        self._chooser = TokenChooser(spec.sampling, len(spec.prompt))
        self._target = target
        self._target_cache = make_prompt_cache(target)
        self._target_tokens = 0
        self._draft: Any = draft
        self._draft_cache = make_prompt_cache(draft) if self.speculates else []
        self._draft_tokens = 0
        self._first: mx.array | None = None

    @property
    def prefilled(self) -> bool:
        """True once the target has seen all that was known at the start."""
        return self._target_tokens >= len(self.spec.prompt) + len(self.spec.emitted)

    @property
    def room(self) -> int:
        """Draft tokens that the next round could use: the request's bound, and never more than can be delivered."""
        return min(self.spec.num_draft_tokens, self.spec.max_tokens - self.emitted - 1)

    def handover(self) -> Handover:
        """All that another engine needs to go on with the sequence."""
        return Handover(self.spec, tuple(self._tokens), self._target_cache)

    def prefill(self) -> tuple[int, list[mx.array]]:
        """Dispatch the next chunk of what is known; returns its tokens, and what is evaluated when it is through."""
        remaining = len(self._tokens) - self._target_tokens
        last = remaining <= LAST_CHUNK_TOKENS
        size = remaining if last else min(PREFILL_CHUNK_TOKENS, remaining - LAST_CHUNK_TOKENS)
        chunk = mx.array(self._tokens[self._target_tokens : self._target_tokens + size])
        logits = self._target(chunk[None], cache=self._target_cache)
        self._target_tokens += size
        under_way: list[mx.array] = [layer.state for layer in self._target_cache]
        if last:
            self._first = self._chooser.choose(logits[0, -1:], len(self._tokens), self._history())
            under_way = [self._first]
        mx.async_eval(under_way)  # type: ignore[no-untyped-call]
        return size, under_way

    def first_token(self) -> int:
        """The token that follows what is known."""
        first, self._first = self._first, None
        if first is None:
            raise RuntimeError("the first token is read once, right after prefill")
        (token,) = _ints(first)
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
        mx.async_eval([layer.state for layer in self._draft_cache])  # type: ignore[no-untyped-call]
        self._draft_tokens += size
        return len(self._tokens) - self._draft_tokens <= LAST_CHUNK_TOKENS

    def round(self, draft_tokens: int) -> tuple[list[int], int]:
        """One round, from its start to its end; see :meth:`verify`."""
        return self.verify(self.draft(draft_tokens))

    def draft(self, draft_tokens: int) -> _Round:
        """Dispatch a round: ``draft_tokens`` of the draft, and the target's look at them."""
        position = len(self._tokens)
        drafted = self._propose(draft_tokens)
        inputs = mx.concatenate([mx.array(self._tokens[-1:]), *drafted])
        logits = self._target(inputs[None], cache=self._target_cache)[0]
        chosen = self._choose_all(logits, position, drafted)
        mx.async_eval(chosen)  # type: ignore[no-untyped-call]
        return _Round(position, drafted, chosen)

    def verify(self, round_: _Round) -> tuple[list[int], int]:
        """Wait for a round, and take what holds. Returns the new tokens and how many of them were drafted."""
        position, drafted, chosen = round_
        draft_tokens = len(drafted)
        choices, proposals = _ints(chosen), [token for one in drafted for token in _ints(one)]
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
