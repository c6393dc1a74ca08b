"""A proposer without a draft model: what followed the last few tokens where they stood before.

Prompt lookup (Saxena, "Prompt Lookup Decoding", 2023; Yang et al., "Inference with Reference: Lossless Acceleration of
Large Language Models", arXiv:2304.04487): text that is edited, quoted or repeated is drafted by copying it. An index
has, for each run of :data:`SIZES` tokens of prompt and answer, the place behind its last occurrence. The place that the
text seems to be copied from moves on with it, so that a token costs a few operations however long the text is.

What a proposal is worth is learnt from every token of the answer, proposed or not: the copied place always says what
should come next. The longer the copy has been right, the likelier it is to be so again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

SIZES: Final = (4, 3, 2)
"""Lengths of the runs that are indexed, the longest first: it is the best evidence."""

CLASSES: Final = (2, 3, 4, 6, 8, 12, 16, 24)
"""A copy's length so far is classed by the largest of these that it reaches."""

PRIOR_TOKENS: Final = 3.0
EVIDENCE_TOKENS: Final = 24.0
"""How much evidence each class keeps, in tokens: it follows a change from writing to copying."""


def prior(matched: int) -> float:
    """Probability that a copy of ``matched`` tokens goes on, before this answer has shown how it is."""
    return matched / (matched + 3)


class PromptLookup:
    """The text of one sequence, and where it seems to be copied from."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._behind: dict[tuple[int, ...], int] = {}
        self._source: int | None = None
        self._matched = 0
        self._right = [PRIOR_TOKENS * prior(reached) for reached in CLASSES]
        self._seen = [PRIOR_TOKENS] * len(CLASSES)

    def __len__(self) -> int:
        return len(self._tokens)

    def extend(self, tokens: Iterable[int], *, answer: bool) -> None:
        """Append tokens of the prompt, or of the ``answer``, which show what copies are worth."""
        for token in tokens:
            self._follow(token, answer)
            self._tokens.append(token)
            self._index()

    @property
    def matched(self) -> int:
        """How many tokens have been as they are where the text seems to be copied from; 0: it is not."""
        return self._matched

    def propose(self, limit: int) -> list[int]:
        """The next ``limit`` tokens of the copy; none if there is no copy.

        A copy that reaches the end of the text goes on with itself: a repetition repeats.
        """
        if self._source is None:
            return []
        proposed = self._tokens[self._source : self._source + limit]
        period = len(self._tokens) - self._source
        while len(proposed) < limit:
            proposed.append(proposed[len(proposed) - period])
        return proposed

    def expected_tokens(self, limit: int) -> list[float]:
        """How many tokens a round yields on average with 0 to ``limit`` of :meth:`propose`, its own among them."""
        tokens, held = [1.0], 1.0
        for ahead in range(limit if self._source is not None else 0):
            held *= self.acceptance(self._matched + ahead)
            tokens.append(tokens[-1] + held)
        return tokens

    def acceptance(self, matched: int) -> float:
        """Estimated probability that a copy of ``matched`` tokens goes on."""
        number = _class(matched)
        return self._right[number] / self._seen[number]

    def _follow(self, token: int, answer: bool) -> None:
        if self._source is None:
            return
        right = self._tokens[self._source] == token
        if answer:
            self._learn(_class(self._matched), right)
        if right:
            self._source += 1
            self._matched += 1
        else:
            self._source, self._matched = None, 0

    def _learn(self, number: int, right: bool) -> None:
        keep = min(1.0, EVIDENCE_TOKENS / (self._seen[number] + 1))
        self._right[number] = keep * (self._right[number] + right)
        self._seen[number] = keep * (self._seen[number] + 1)

    def _index(self) -> None:
        for size in SIZES:
            if len(self._tokens) < size:
                continue
            run = tuple(self._tokens[-size:])
            if self._source is None and run in self._behind:
                self._source, self._matched = self._behind[run], size
            self._behind[run] = len(self._tokens)


def _class(matched: int) -> int:
    return max(number for number, reached in enumerate(CLASSES) if reached <= max(matched, CLASSES[0]))
