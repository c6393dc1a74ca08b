"""What the throughput lane's steps cost here, learnt from the steps that were made: pure numbers, no arrays."""

from __future__ import annotations

import math
from typing import Final

SIZES: Final = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
"""Tokens of a chunk of prefill. Few, because a GPU compiles and caches for each shape."""

UNMEASURED_TOKENS: Final = 64
FEW: Final = 32
"""Tokens of a chunk that takes about twice what reading the weights does, on a CPU; elsewhere it takes more."""

AS_GOOD: Final = 1.05
"""A larger chunk is preferred even if each of its tokens costs a twentieth more: fewer steps."""

MEMORY: Final = 0.03
"""Weight of the newest step: about thirty steps of memory, more than a scheduling hiccup."""

AIM: Final = 0.8
"""Share of a bound that a step is made for: sequences grow, measurements scatter."""

WORTH_SPLITTING: Final = 2.5
"""Where even one sequence's step is above the bound, a batch's step may take so many times what reading the weights
takes: its halves would take 0.7 of it each, and 1.4 times as long together."""

WORTH_ITS_OWN: Final = 2.0
"""A sequence begins a batch only where joining one costs so many times what its own steps would. Both are small
differences of what scatters: with eight sequences of up to 1,100 tokens on a CPU a second batch, begun for nothing,
cost a quarter of the tokens/s for as long as it lived."""

CARRIED_ROWS: Final = (16, 32, 48, 64, 96, 128)
"""Sequences and tokens of a decode step that carries a chunk: matrix products come in multiples of 16 rows, and one of
24 takes longer than one of 32 (OpenBLAS on an AMD CPU). Of more the weights are a small part."""

UNMEASURED_CARRIED: Final = 0.6
"""Before any measurement a carried chunk counts as this share of what its tokens take by themselves."""

LEAST_CARRIED: Final = 0.1
"""What is learnt of carried chunks is a small difference of what scatters: they never cost less than this share."""

KEPT_POINTS: Final = 3.0
"""Weight of what was learnt of other lengths, against the thirty of those that are usual now."""

MIN_SPREAD: Final = 0.05
"""Below this relative spread of what was observed, a line through it has no slope worth the name."""


SURPRISE: Final = 2.0
"""A step can take longer than it must for many reasons, the first of a shape for seconds, but never less than it must:
what is above the expected by more than this factor counts as that, and what is as far below refutes what was learnt."""


def chunk_size(tokens: int) -> int:
    """The smallest of :data:`SIZES` that holds so many; beyond them, what was asked."""
    return next((size for size in SIZES if size >= tokens), tokens)


Sums = tuple[float, float, float, float, float]
"""Over points: of their weights, and weighted of ``x``, ``y``, ``x * x`` and ``x * y``."""


class Line:
    """``y = intercept + slope * x``, neither of them negative: least squares, in which old points fade.

    Args:
        kept: weight, in points, that the points about one ``x`` (of the same power of two) never fade below. If nothing
            was kept, a line through many points that are close together would say of those far away whatever the noise
            makes of its slope.
    """

    def __init__(self, kept: float = 0.0) -> None:
        self._kept = kept
        self._near: dict[int, Sums] = {}
        self._weight = 0.0
        self._x = self._y = self._xx = self._xy = 0.0

    def observe(self, x: float, y: float) -> None:
        """Book one point; neither is negative."""
        expected = self.at(x)
        ratio = x / self._x if self._x > 0 else 1.0  # a line with no negative part rises at most in proportion
        if y * SURPRISE < expected * min(ratio, 1.0):
            self._near = {key: sums for key, sums in self._near.items() if not _refuted(sums, x, y)}
        elif self.known:
            y = min(y, SURPRISE * expected * max(ratio, 1.0))
        point = (1.0, x, y, x * x, x * y)
        near = {key: self._faded(sums) for key, sums in self._near.items()}
        here = int(x).bit_length()
        near[here] = _total(near[here], point) if here in near else point
        self._near = near
        self._weight, *sums = _total(*near.values())
        self._x, self._y, self._xx, self._xy = (total / self._weight for total in sums)

    def _faded(self, sums: Sums) -> Sums:
        weight, x, y, xx, xy = sums
        share = max(1 - MEMORY, min(1.0, self._kept / weight))
        return share * weight, share * x, share * y, share * xx, share * xy

    @property
    def known(self) -> bool:
        """True after the first observation."""
        return self._weight > 0

    @property
    def slope(self) -> float:
        """Change of ``y`` with ``x``, 0 while all points had about the same ``x``."""
        variance = self._xx - self._x * self._x
        if variance <= (MIN_SPREAD * self._x) ** 2:
            return 0.0
        return min(max((self._xy - self._x * self._y) / variance, 0.0), max(self._y, 0.0) / self._x)

    @property
    def intercept(self) -> float:
        """``y`` at 0."""
        return self._y - self.slope * self._x

    def at(self, x: float) -> float:
        """The expected ``y``; 0 before any observation."""
        return self.intercept + self.slope * x


def _total(*sums: Sums) -> Sums:
    weight, x, y, xx, xy = (sum(column) for column in zip(*sums, strict=True))
    return weight, x, y, xx, xy


def _refuted(sums: Sums, x: float, y: float) -> bool:
    """Whether points cannot be true any more, as ``y`` was enough for ``x``."""
    weight, sum_x, sum_y, _, _ = sums
    further = max(sum_x / weight / x, 1.0) if x else 1.0
    return y * SURPRISE * further < sum_y / weight


class StepCosts:
    """Decode steps and chunks of prefill of one model on one device.

    A decode step takes a constant, in which the weights are read, and so much for each token of KV cache: a batch is
    padded to its longest sequence, so these are sequences times that one's tokens. A chunk takes the same constant and,
    for each of its tokens, a constant and so much for each token that it attends to. A decode step that carries a chunk
    takes a share of the latter more.
    """

    def __init__(self) -> None:
        self._decode = Line(KEPT_POINTS)
        self._chunk_token = Line(KEPT_POINTS)
        self._carried_share = UNMEASURED_CARRIED

    def decoded(self, cache_tokens: int, seconds: float) -> None:
        """Book a decode step."""
        self._decode.observe(cache_tokens, seconds)

    def prefilled(self, tokens: int, attended: int, seconds: float) -> None:
        """Book a chunk of ``tokens``, the last of which attends to ``attended`` tokens."""
        least = min(0.5, tokens / FEW)  # of a chunk that is not very short, what else is in it is no more than half
        own_s = max(seconds - self._decode.intercept, least * seconds)
        self._chunk_token.observe(attended, own_s / tokens)

    def carried(self, cache_tokens: int, tokens: int, attended: int, seconds: float) -> None:
        """Book a decode step with a chunk of ``tokens`` in it, the last of which attends to ``attended`` tokens."""
        alone_s = tokens * self._chunk_token.at(attended)
        share = (seconds - self.decode_s(cache_tokens)) / alone_s if alone_s else 1.0
        share = min(max(share, 0.0), 1.0)
        self._carried_share += MEMORY * (share - self._carried_share)
        self._carried_share = max(self._carried_share, LEAST_CARRIED)

    def decode_s(self, cache_tokens: int) -> float:
        """Expected seconds of a decode step; 0 before any."""
        return self._decode.at(cache_tokens)

    def longest_s(self, length: int, limit_s: float) -> float:
        """The bound of a batch with a sequence of so many tokens: ``limit_s``, if that can be kept."""
        if self.decode_s(length) <= limit_s:
            return limit_s
        return max(limit_s, WORTH_SPLITTING * self._decode.intercept)

    def chunk_s(self, tokens: int, attended: int) -> float:
        """Expected seconds of a chunk."""
        return self._decode.intercept + tokens * self._chunk_token.at(attended)

    def chunk_tokens(self, offset: int, limit_s: float) -> int:
        """The size of the chunk behind ``offset`` tokens that gets most done in its time and stays within ``limit_s``.

        The smallest of :data:`SIZES` if none stays within it.
        """
        if not self._chunk_token.known:
            return UNMEASURED_TOKENS
        fitting = [size for size in SIZES if self.chunk_s(size, offset + size) <= limit_s] or [SIZES[0]]
        token_s = {size: self.chunk_s(size, offset + size) / size for size in fitting}
        best_s = min(token_s.values())
        return max(size for size in fitting if token_s[size] <= AS_GOOD * best_s)

    def carried_tokens(self, sequences: int, longest: int, offset: int, limit_s: float) -> int:
        """The largest chunk behind ``offset`` tokens that a decode step carries within ``limit_s``; 0 if none.

        Args:
            sequences: of the batch.
            longest: tokens of the longest one.
            offset: tokens before the chunk.
            limit_s: how long the whole step may take.
        """
        if not (self._chunk_token.known and self._decode.known):
            return 0
        decode_s = self.decode_s(sequences * longest)
        room_s = AIM * self.longest_s(longest, limit_s) - decode_s
        sizes = (rows - sequences for rows in CARRIED_ROWS if rows > sequences)
        return max((size for size in sizes if self._carried_s(size, offset + size) <= room_s), default=0)

    def _carried_s(self, tokens: int, attended: int) -> float:
        return tokens * self._chunk_token.at(attended) * self._carried_share

    def place(self, length: int, batches: list[tuple[int, int]], limit_s: float) -> int | None:
        """The batch that a sequence of ``length`` tokens joins; None: one of its own, if that makes steps no longer.

        It goes where what it adds is least, together with its share of the constant: a batch lives on by those who join
        it, so of several the small ones are left to end.

        Args:
            length: tokens of the sequence.
            batches: sequences and tokens of the longest one of each batch.
            limit_s: no batch's decode step is to take longer, if one sequence's does not (:meth:`longest_s`).
        """
        longest_s = AIM * self.longest_s(length, limit_s)
        alone_s = self.decode_s(length)
        best, best_s = None, math.inf
        for index, (sequences, longest) in enumerate(batches):
            joined_s = self.decode_s((sequences + 1) * max(longest, length))
            more_s = joined_s - self.decode_s(sequences * longest) if sequences else joined_s
            if joined_s > longest_s or more_s > WORTH_ITS_OWN * alone_s:
                continue
            share_s = more_s + (self._decode.intercept / (sequences + 1) if sequences else 0.0)
            if share_s < best_s:
                best, best_s = index, share_s
        return best
