"""One sequence of the interactive lane: its tokens and caches, and the rounds in which it grows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache, trim_prompt_cache

from lanes.engines.base import Handover, SequenceSpec
from lanes.engines.draft_length import Stopping
from lanes.engines.kv_layers import KVLayers
from lanes.engines.prompt_caches import PromptCaches
from lanes.engines.prompt_lookup import PromptLookup
from lanes.engines.proposing import PLAIN, PairCosts, Plan, Proposing
from lanes.engines.rejection import propose, verify
from lanes.engines.sampling import TokenChooser
from lanes.wire import Proposer, SpecCounters

PREFILL_CHUNK_TOKENS = 256
LAST_CHUNK_TOKENS = 128
"""The last chunk is computed with logits for all its rows: a tenth more work, and for a short prompt one pass less."""

INDEX_TOKENS = 512
"""Tokens of a text that are indexed for lookup at a time: a millisecond or two, mostly while the device is busy."""


class Round(NamedTuple):
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


class Run:
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
        looks_up = self._lookup is not None and self._read()
        plan = self._proposing.choose(self.room, drafts=drafts, looks_up=looks_up)
        return plan, drafts or not self._drafts

    def learn(self, round_: Round, accepted: int) -> None:
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

    def draft(self, plan: Plan) -> Round:
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
        return Round(plan.proposer, position, drafted.tokens, outcome, by_rejection, drafted.probabilities)

    def verify(self, round_: Round) -> tuple[list[int], int]:
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
