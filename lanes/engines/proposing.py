"""Who proposes the next round's tokens, the draft model or the prompt, and how many: whatever yields most.

Both are judged by one measure, expected tokens of a round divided by its seconds (see
:mod:`lanes.engines.draft_length`), each by its own acceptance and its own costs: what is looked up costs no draft step,
so that even a poor copy may be the better offer, and a good one nearly always is.
"""

from __future__ import annotations

from typing import NamedTuple

from lanes.engines.draft_length import Confidence, DraftLength, RoundCosts, Stopping
from lanes.engines.prompt_lookup import PromptLookup
from lanes.wire import Proposer


class PairCosts:
    """What is learnt of one pair on one device, and shared by its requests."""

    def __init__(self, max_draft_tokens: int, *, draft_model: bool, prompt_lookup: bool) -> None:
        self.draft_model = RoundCosts(max_draft_tokens if draft_model else 0)
        self.prompt_lookup = RoundCosts(max_draft_tokens if prompt_lookup else 0)
        self.confidence = {True: Confidence(), False: Confidence()}
        """By whether a request is greedy."""

    @property
    def proposers(self) -> list[Proposer]:
        """Those that there are."""
        return [name for name in ("draft_model", "prompt_lookup") if self.of(name).max_draft_tokens > 0]

    def of(self, proposer: Proposer) -> RoundCosts:
        """The costs of one proposer's rounds."""
        return self.draft_model if proposer == "draft_model" else self.prompt_lookup

    def observe(self, proposer: Proposer, draft_tokens: int, seconds: float) -> None:
        """Book a round. One without draft tokens is the same for both."""
        if draft_tokens:
            self.of(proposer).observe(draft_tokens, seconds)
        else:
            self.draft_model.observe(0, seconds)
            self.prompt_lookup.observe(0, seconds)


class Plan(NamedTuple):
    """A round to be: whose tokens, how many at most, and for a draft model when to stop before that."""

    proposer: Proposer
    draft_tokens: int
    stopping: Stopping | None = None


PLAIN = Plan("draft_model", 0)


class Proposing:
    """The choice for one request.

    Args:
        costs: of the pair.
        lookup: the request's text; None: it is not looked up.
        drafts: whether there is a draft model.
        greedy: whether the request is.
    """

    def __init__(self, costs: PairCosts, lookup: PromptLookup | None, *, drafts: bool, greedy: bool) -> None:
        self._costs = costs
        self._lookup = lookup
        self._confidence = costs.confidence[greedy]
        self._length = DraftLength(costs.draft_model) if drafts else None

    def choose(self, limit: int, *, drafts: bool, looks_up: bool = True) -> Plan:
        """The best plan of at most ``limit`` draft tokens. ``drafts`` and ``looks_up``: who is ready to propose."""
        best, best_goodput = PLAIN, 1 / self._costs.draft_model.seconds(0)
        if self._length is not None and drafts:
            k = self._length.choose(limit)
            if k > 0:
                best_goodput = self._length.goodput(k)
                best = Plan("draft_model", min(limit, self._costs.draft_model.max_draft_tokens))
        if self._lookup is not None and looks_up:
            costs = self._costs.prompt_lookup
            tokens = self._lookup.expected_tokens(min(limit, costs.max_draft_tokens))
            for k, expected in enumerate(tokens[1:], start=1):
                if expected / costs.seconds(k) > best_goodput:
                    best, best_goodput = Plan("prompt_lookup", k), expected / costs.seconds(k)
        if best.proposer == "draft_model" and best.draft_tokens and self._length is not None:
            least = best_goodput * self._costs.draft_model.step_s
            best = best._replace(stopping=Stopping(self._confidence, self._length.acceptance, least))
        return best

    def observe(self, proposer: Proposer, drafted: int, accepted: int, probabilities: list[float]) -> None:
        """Learn from a round that drafted ``drafted`` tokens, of which the first ``accepted`` were accepted.

        ``probabilities`` are those that the draft model gave its tokens.
        """
        if self._length is not None and (proposer == "draft_model" or not drafted):
            self._length.observe(drafted, accepted)
        if probabilities:
            self._confidence.observe(probabilities, accepted)
