"""How many tokens to draft in the next round, from what rounds cost here and what this request accepts.

The rule maximises *goodput*: expected tokens of a round divided by its seconds (Liu et al., "Optimizing Speculative
Decoding for Serving Large Language Models Using Goodput", arXiv:2406.14066). With acceptance probability ``a`` for each
token, a round of ``k`` draft tokens yields ``(1 - a**(k+1)) / (1 - a)`` tokens on average (Leviathan, Kalman, Matias,
ICML 2023, equation 1). Drafting nothing is one of the choices: speculation steps aside where it does not pay.

The length is chosen before the round, from averages; within it the draft may turn out to be unsure. Then the round ends
early (:class:`Stopping`): one more draft token is worth its time only while the chance that it is accepted, and all
before it, is more than what the same time yields on average.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from lanes.engines.step_costs import Line

COST_SMOOTHING = 0.1
"""Weight of the newest round in a length's mean cost: about ten rounds of memory, more than a scheduling hiccup."""

LEAST_STEP = 0.02
"""A draft token costs at least this share of a plain round, whatever a noisy machine says."""

EVIDENCE_TOKENS = 40.0
"""How much evidence the acceptance estimate keeps, in compared tokens: it follows a change of subject within rounds."""

PRIOR_ACCEPTED, PRIOR_REFUSED = 3.0, 1.0
"""Before anything was compared a pair is taken to accept three of four: drafting a little is how one finds out."""

RETRY = 0.02
"""Share by which each plain round moves the estimate back to the prior, so that a dry spell does not last for ever."""


class RoundCosts:
    """Seconds of a round for each draft length, of one pair on one device; shared by its requests."""

    def __init__(self, max_draft_tokens: int) -> None:
        self.max_draft_tokens = max_draft_tokens
        self._mean_s: dict[int, float] = {}
        self._drafted = Line()

    def observe(self, draft_tokens: int, seconds: float) -> None:
        """Book one round."""
        mean_s = self._mean_s.get(draft_tokens)
        self._mean_s[draft_tokens] = seconds if mean_s is None else mean_s + COST_SMOOTHING * (seconds - mean_s)
        if draft_tokens:
            self._drafted.observe(draft_tokens, seconds)

    def seconds(self, draft_tokens: int) -> float:
        """Expected cost of a round; between measured lengths by linear interpolation. 1.0 before any measurement."""
        known = self._mean_s
        if draft_tokens in known:
            return known[draft_tokens]
        below = max((k for k in known if k < draft_tokens), default=None)
        above = min((k for k in known if k > draft_tokens), default=None)
        if below is None or above is None:
            nearest = below if above is None else above
            return 1.0 if nearest is None else known[nearest]
        share = (draft_tokens - below) / (above - below)
        return known[below] + share * (known[above] - known[below])

    @property
    def step_s(self) -> float:
        """What one more draft token costs: its draft step, and its place in the verification.

        From rounds of all lengths together: a difference of two lengths' means would be mostly noise.
        """
        return max(self._drafted.slope, LEAST_STEP * self.seconds(0))


CONFIDENCE_EDGES: Final = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
CONFIDENCE_PRIOR: Final = 4.0
CONFIDENCE_EVIDENCE: Final = 200.0
"""Evidence about a confidence, in tokens: where it starts, taken at its word, and how much is kept."""


class Confidence:
    """How often a draft token is accepted, by the probability that the draft gives it; of one pair, over its requests.

    Drafts are often surer than they should be, at a temperature above all: what they say is not taken at its word.
    """

    def __init__(self) -> None:
        bounds = (0.0, *CONFIDENCE_EDGES, 1.0)
        middles = [(low + high) / 2 for low, high in pairwise(bounds)]
        self._accepted = [CONFIDENCE_PRIOR * middle for middle in middles]
        self._seen = [CONFIDENCE_PRIOR] * len(middles)

    def acceptance(self, probability: float) -> float:
        """Estimated probability that a token which the draft gives ``probability`` is accepted."""
        number = bisect_right(CONFIDENCE_EDGES, probability)
        return self._accepted[number] / self._seen[number]

    def observe(self, probabilities: Sequence[float], accepted: int) -> None:
        """Learn from a round: the draft's probabilities of its tokens; the first ``accepted`` of them were accepted."""
        for place, probability in enumerate(probabilities[: accepted + 1]):
            number = bisect_right(CONFIDENCE_EDGES, probability)
            keep = min(1.0, CONFIDENCE_EVIDENCE / (self._seen[number] + 1))
            self._accepted[number] = keep * (self._accepted[number] + (place < accepted))
            self._seen[number] = keep * (self._seen[number] + 1)


class Stopping:
    """When to end the drafting of one round.

    Args:
        confidence: of the pair.
        acceptance: of this request's draft tokens, on average.
        least: acceptance of a further token below which it is not worth its time.
    """

    def __init__(self, confidence: Confidence, acceptance: float, least: float) -> None:
        self._confidence = confidence
        self._acceptance = acceptance
        self._least = least
        self._held = 1.0

    def drafted(self, probability: float) -> None:
        """Book the draft's probability of the next token that it drafted."""
        self._held *= self._confidence.acceptance(probability)

    def worth(self, unknown: int) -> bool:
        """Whether one more token is worth drafting behind those booked and ``unknown`` others."""
        return self._held * self._acceptance ** (unknown + 1) >= self._least


class DraftLength:
    """The choice for one request."""

    def __init__(self, costs: RoundCosts) -> None:
        self._costs = costs
        self._accepted = PRIOR_ACCEPTED
        self._refused = PRIOR_REFUSED

    @property
    def acceptance(self) -> float:
        """Estimated probability that the next draft token is accepted."""
        return self._accepted / (self._accepted + self._refused)

    def choose(self, limit: int) -> int:
        """The length with the best goodput in 0..``limit``; the shorter of equals."""
        limit = min(limit, self._costs.max_draft_tokens)
        return max(range(limit + 1), key=lambda k: (self.goodput(k), -k))

    def observe(self, draft_tokens: int, accepted: int) -> None:
        """Learn from a round that drafted ``draft_tokens``, of which the first ``accepted`` were accepted."""
        if draft_tokens == 0:
            self._accepted += RETRY * (PRIOR_ACCEPTED - self._accepted)
            self._refused += RETRY * (PRIOR_REFUSED - self._refused)
            return
        self._accepted += accepted
        self._refused += accepted < draft_tokens  # only the first refused token was compared in its context
        keep = min(1.0, EVIDENCE_TOKENS / (self._accepted + self._refused))
        self._accepted *= keep
        self._refused *= keep

    def goodput(self, draft_tokens: int) -> float:
        """Expected tokens a second of rounds that draft so many."""
        a = self.acceptance
        tokens = draft_tokens + 1 if a >= 1 else (1 - a ** (draft_tokens + 1)) / (1 - a)
        return tokens / self._costs.seconds(draft_tokens)
