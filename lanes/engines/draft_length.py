"""How many tokens to draft in the next round, from what rounds cost here and what this request accepts.

The rule maximises *goodput*: expected tokens of a round divided by its seconds (Liu et al., "Optimizing Speculative
Decoding for Serving Large Language Models Using Goodput", arXiv:2406.14066). With acceptance probability ``a`` for each
token, a round of ``k`` draft tokens yields ``(1 - a**(k+1)) / (1 - a)`` tokens on average (Leviathan, Kalman, Matias,
ICML 2023, equation 1). Drafting nothing is one of the choices: speculation steps aside where it does not pay.
"""

from __future__ import annotations

COST_SMOOTHING = 0.1
"""Weight of the newest round in a length's mean cost: about ten rounds of memory, more than a scheduling hiccup."""

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

    def observe(self, draft_tokens: int, seconds: float) -> None:
        """Book one round."""
        mean_s = self._mean_s.get(draft_tokens)
        self._mean_s[draft_tokens] = seconds if mean_s is None else mean_s + COST_SMOOTHING * (seconds - mean_s)

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
        return max(range(limit + 1), key=lambda k: (self._goodput(k), -k))

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

    def _goodput(self, draft_tokens: int) -> float:
        a = self.acceptance
        tokens = draft_tokens + 1 if a >= 1 else (1 - a ** (draft_tokens + 1)) / (1 - a)
        return tokens / self._costs.seconds(draft_tokens)
