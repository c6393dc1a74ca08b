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
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache, trim_prompt_cache

from lanes.engines.base import Emission, Handover, SequenceSpec, until_eos
from lanes.engines.draft_length import Stopping
from lanes.engines.kv_layers import KVLayers
from lanes.engines.prompt_caches import PromptCaches
from lanes.engines.prompt_lookup import PromptLookup
from lanes.engines.proposing import PLAIN, PairCosts, Plan, Proposing
from lanes.engines.rejection import propose, verify
from lanes.engines.sampling import TokenChooser
from lanes.wire import FinishReason, Proposer, Sampling, SpecCounters

log = logging.getLogger(__name__)

PREFILL_CHUNK_TOKENS = 256
LAST_CHUNK_TOKENS = 128
"""The last chunk is computed with logits for all its rows: a tenth more work, and for a short prompt one pass less."""

INDEX_TOKENS = 512
"""Tokens of a text that are indexed for lookup at a time: a millisecond or two, mostly while the device is busy."""

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
        self._runs: dict[str, _Run] = {}
        self._turns: deque[str] = deque()
        self._under_way: tuple[_Run, _Settle] | None = None
        self.computed_tokens = 0

    def add(self, spec: SequenceSpec) -> None:
        """See :class:`lanes.engines.base.Engine`."""
        if spec.request_id in self._runs:
            raise ValueError(f"request id {spec.request_id!r} is in use")
        self._runs[spec.request_id] = run = _Run(spec, self._target, self._draft, self._costs)
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

    def calibrate(self, prompt: tuple[int, ...]) -> None:
        """Measure what a round of each kind costs on this device; compiles every shape on the way.

        Runs greedy rounds on ``prompt`` (at least one token) and forgets them.
        """
        for plan in self.kinds_of_round():
            self.calibrate_round(prompt, plan)

    def kinds_of_round(self) -> list[Plan]:
        """What a round may be: plain, and each length of each proposer."""
        lengths = {proposer: self._costs.of(proposer).max_draft_tokens for proposer in self._costs.proposers}
        return [PLAIN] + [Plan(proposer, k + 1) for proposer, longest in lengths.items() for k in range(longest)]

    def calibrate_round(self, prompt: tuple[int, ...], plan: Plan) -> None:
        """:meth:`calibrate` for rounds of one kind."""
        rounds = CALIBRATION_ROUNDS + 2
        spec = SequenceSpec("calibration", prompt, rounds * (plan.draft_tokens + 1) + 1, _GREEDY, plan.draft_tokens)
        run = _Run(spec, self._target, self._draft, self._costs)
        while not run.prefilled:
            run.prefill()
        run.first_token()
        run.round(PLAIN)
        run.round(plan)
        seconds = []
        for _ in range(CALIBRATION_ROUNDS):
            started_s = time.perf_counter()
            run.round(plan)
            seconds.append(time.perf_counter() - started_s)
        self._costs.observe(plan.proposer, plan.draft_tokens, min(seconds))  # a hiccup would be remembered for long

    def _start(self, run: _Run) -> _Settle:
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

    def _start_prefill(self, run: _Run) -> _Settle:
        tokens, arrays = run.prefill()

        def settle(_: float) -> Emission | None:
            mx.eval(arrays)
            self.computed_tokens += tokens
            return self._emit(run, [run.first_token()], None, 0) if run.prefilled else None

        return settle

    def _failed(self, run: _Run, exc: Exception) -> Emission:
        request_id = run.spec.request_id
        log.error("a step of request %s failed", request_id, exc_info=exc)
        self._forget(request_id)
        self._prompt_caches.clear()  # what it began with may be at fault
        return Emission(request_id, error=f"{type(exc).__name__}: {exc}")

    def _forget(self, request_id: str) -> _Run | None:
        run = self._runs.pop(request_id, None)
        if run is not None:
            self._turns.remove(request_id)
        return run

    def _emit(self, run: _Run, chosen: list[int], round_: _Round | None, accepted: int) -> Emission:
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


class _Round(NamedTuple):
    """A round that was dispatched.

    ``outcome`` are integers: where the target's own choices decide, the choice at each place; by rejection sampling,
    how many of ``proposed`` hold and the token that follows. ``probabilities`` are what the draft gave its tokens.
    """

    proposer: Proposer
    position: int
    proposed: list[mx.array]
    outcome: mx.array
    by_rejection: bool
    probabilities: list[mx.array]

    @property
    def draft_tokens(self) -> int:
        """Tokens proposed."""
        return len(self.proposed)

    def counters(self, accepted: int, *, cut_short: bool) -> SpecCounters:
        """What the round adds if ``accepted`` of its tokens are taken. ``cut_short``: the answer ended there."""
        compared = accepted if cut_short else self.draft_tokens
        return SpecCounters.of_round(self.proposer, self.draft_tokens, accepted, compared)


class _Drafted(NamedTuple):
    """Tokens of the draft model, each of shape ``(1,)``, and what they were drawn by: none where noise is shared."""

    tokens: list[mx.array]
    log_weights: list[mx.array]
    probabilities: list[mx.array]


class _Run:
    """One sequence. Between rounds the target's cache holds all tokens but the last, the draft's a prefix of them."""

    def __init__(self, spec: SequenceSpec, target: Any, draft: Any | None, costs: PairCosts) -> None:
        self.spec = spec
        self.emitted = len(spec.emitted)
        self.begun = False
        proposers = costs.proposers if spec.num_draft_tokens > 0 else []
        self.speculates = bool(proposers)
        self._drafts = "draft_model" in proposers
        self._lookup = PromptLookup() if "prompt_lookup" in proposers else None
        greedy = spec.sampling.temperature == 0
        self._proposing = Proposing(costs, self._lookup, drafts=self._drafts, greedy=greedy)
        self._by_rejection = not (greedy or spec.sampling.seeded)
        self._rounds = 0
        self._tokens = list(spec.token_ids)
        self._chooser = TokenChooser(spec.sampling, len(spec.prompt))
        self._target = target
        self._target_cache = make_prompt_cache(target)
        self._target_tokens = 0
        self._draft: Any = draft
        self._draft_cache = make_prompt_cache(draft) if self._drafts else []
        self._draft_tokens = 0
        self._first: mx.array | None = None
        self.cached_tokens = 0

    def resume(self, prompt_caches: PromptCaches) -> None:
        """Begin behind what is known already."""
        known = prompt_caches.find(tuple(self._tokens))
        if known is None:
            return
        self._target_tokens, self._target_cache = known.tokens, known.target
        self.cached_tokens = min(known.tokens, len(self.spec.prompt))
        if self._drafts and known.draft:
            self._draft_tokens, self._draft_cache = known.draft_tokens, known.draft

    def leave(self, prompt_caches: PromptCaches) -> None:
        """Leave what was computed; between two steps, and nothing is computed any more."""
        computed = len(self._tokens) - 1 if self.begun else self._target_tokens
        if computed:
            draft = KVLayers(self._draft_cache, self._draft_tokens) if self._draft_tokens else None
            prompt_caches.keep(tuple(self._tokens[:computed]), KVLayers(self._target_cache, computed), draft)

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
        self._read()
        return size, under_way

    def first_token(self) -> int:
        """The token that follows what is known."""
        first, self._first = self._first, None
        if first is None:
            raise RuntimeError("the first token is read once, right after prefill")
        (token,) = _ints(first)
        self._tokens.append(token)
        return token

    def plan(self) -> tuple[Plan, bool]:
        """What the next round is to be; and whether it is one to learn from: it does nothing else beside."""
        if not self.speculates:
            return PLAIN, True
        drafts = self._drafts and self._catch_up()
        if not self._read():
            return PLAIN, drafts
        return self._proposing.choose(self.room, drafts=drafts), drafts or not self._drafts

    def learn(self, round_: _Round, accepted: int) -> None:
        """What the request's next rounds should know of one that is over."""
        probabilities = [_float(probability) for probability in round_.probabilities]
        self._proposing.observe(round_.proposer, round_.draft_tokens, accepted, probabilities)

    def _read(self) -> bool:
        """Index more of the text for lookup; True if it is all indexed, or not to be."""
        if self._lookup is None:
            return True
        start, prompt_tokens = len(self._lookup), len(self.spec.prompt)
        end = min(start + INDEX_TOKENS, len(self._tokens))
        self._lookup.extend(self._tokens[start : min(end, prompt_tokens)], answer=False)
        self._lookup.extend(self._tokens[max(start, prompt_tokens) : end], answer=True)
        return end == len(self._tokens)

    def _catch_up(self) -> bool:
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

    def round(self, plan: Plan) -> tuple[list[int], int]:
        """One round, from its start to its end; see :meth:`verify`."""
        return self.verify(self.draft(plan))

    def draft(self, plan: Plan) -> _Round:
        """Dispatch a round: what is proposed, and the target's look at it."""
        position = len(self._tokens)
        looked_up = plan.proposer == "prompt_lookup"
        by_rejection = self._by_rejection and not looked_up and plan.draft_tokens > 0
        if looked_up:
            drafted = _Drafted(
                [mx.array([token], dtype=mx.uint32) for token in self._copied(plan.draft_tokens)], [], []
            )
        else:
            drafted = self._propose(plan, by_rejection=by_rejection)
        inputs = mx.concatenate([mx.array(self._tokens[-1:], dtype=mx.uint32), *drafted.tokens])
        logits = self._target(inputs[None], cache=self._target_cache)[0]
        if by_rejection:
            weights = self._each(self._chooser.log_weights, logits, drafted.tokens)
            outcome = verify(weights, drafted.log_weights, inputs[1:], self._chooser.sampling.seed, position)
        else:
            outcome = self._choose_all(logits, position, drafted.tokens)
        mx.async_eval(outcome)  # type: ignore[no-untyped-call]
        self._rounds += 1
        return _Round(plan.proposer, position, drafted.tokens, outcome, by_rejection, drafted.probabilities)

    def verify(self, round_: _Round) -> tuple[list[int], int]:
        """Wait for a round, and take what holds. Returns the new tokens and how many of them were drafted."""
        draft_tokens = round_.draft_tokens
        outcome, proposals = _ints(round_.outcome), [token for one in round_.proposed for token in _ints(one)]
        if round_.by_rejection:
            accepted, follows = outcome
        else:
            accepted = 0
            while accepted < draft_tokens and outcome[accepted] == proposals[accepted]:
                accepted += 1
            follows = outcome[accepted]
        taken = [*proposals[:accepted], follows]
        self._tokens += taken
        if accepted < draft_tokens:
            trim_prompt_cache(self._target_cache, draft_tokens - accepted)
        if draft_tokens and round_.proposer == "draft_model":  # it has seen its own proposals but the last
            self._draft_tokens = round_.position + min(accepted, draft_tokens - 1)
            trim_prompt_cache(self._draft_cache, max(draft_tokens - 1 - accepted, 0))
        return taken, accepted

    def _copied(self, limit: int) -> list[int]:
        """``limit`` tokens by lookup; to calibrate, any."""
        proposed = self._lookup.propose(limit) if self._lookup is not None else []
        return proposed or self._tokens[:1] * limit

    def _propose(self, plan: Plan, *, by_rejection: bool) -> _Drafted:
        """Draft tokens, not yet evaluated: as many as planned, or fewer if the draft is unsure."""
        drafted = _Drafted([], [], [])
        inputs = mx.array(self._tokens[self._draft_tokens :])
        for ahead in range(plan.draft_tokens):
            if plan.stopping is not None and not _go_on(plan.stopping, drafted.probabilities, ahead):
                break
            logits = self._draft(inputs[None], cache=self._draft_cache)[0, -1:]
            position, history = len(self._tokens) + ahead, self._history(drafted.tokens)
            if by_rejection:
                weights = self._chooser.log_weights(logits, history)
                token = propose(weights, self._chooser.sampling.seed, position, self._rounds)
                drafted.log_weights.append(weights)
            else:
                weights, token = logits, self._chooser.choose(logits, position, history)
            drafted.tokens.append(token)
            if plan.stopping is not None:
                drafted.probabilities.append(_probability(weights, token))
            # The device drafts while the next step's graph is built.
            mx.async_eval(token, *drafted.probabilities[-1:])  # type: ignore[no-untyped-call]
            inputs = token
        return drafted

    def _choose_all(self, logits: mx.array, position: int, drafted: list[mx.array]) -> mx.array:
        if not self._chooser.needs_history:
            return self._chooser.choose(logits, position)
        positions = iter(range(position, position + len(drafted) + 1))
        return self._each(lambda row, history: self._chooser.choose(row, next(positions), history), logits, drafted)

    def _each(
        self, function: Callable[[mx.array, mx.array | None], mx.array], logits: mx.array, drafted: list[mx.array]
    ) -> mx.array:
        """``function`` of all rows at once, or, where each has a history of its own, of one after the other."""
        if not self._chooser.needs_history:
            return function(logits, None)
        rows = [function(logits[row : row + 1], self._history(drafted[:row])) for row in range(len(drafted) + 1)]
        return mx.concatenate(rows)

    def _history(self, drafted: list[mx.array] | None = None) -> mx.array | None:
        if not self._chooser.needs_history:
            return None
        return mx.concatenate([mx.array(self._tokens, dtype=mx.uint32), *(drafted or ())])


def _go_on(stopping: Stopping, probabilities: list[mx.array], ahead: int) -> bool:
    """Whether to draft a token behind ``ahead`` others. The last is not waited for: the device is busy with it."""
    if ahead >= 2:
        stopping.drafted(_float(probabilities[ahead - 2]))
    return ahead == 0 or stopping.worth(1)


def _probability(log_weights: mx.array, token: mx.array) -> mx.array:
    """Of ``token`` by unnormalised ``log_weights`` of shape ``(1, vocabulary)``; a scalar."""
    return mx.exp(log_weights[0, token[0]] - mx.logsumexp(log_weights[0]))


def _float(scalar: mx.array) -> float:
    return cast(float, scalar.item())


def _ints(tokens: mx.array) -> list[int]:
    return cast(list[int], tokens.tolist())
