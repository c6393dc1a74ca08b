"""A KV cache of several sequences that others join and leave without its being copied.

mlx-lm's :class:`~mlx_lm.models.cache.BatchKVCache` is copied whole whenever a sequence joins or leaves, and reads its
paddings back from the device then, layer by layer, each time waiting for the step that the device is at work on. Here a
sequence is one row of an array that has some to spare: one that joins is written into the first spare row, one that
leaves has its row taken by the last, and padding that nobody needs any more is not looked at. On a CPU, with eight
sequences of up to 950 tokens in seven layers, a join takes 5 ms instead of 125.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Self, cast

import mlx.core as mx
from mlx_lm.models.cache import BatchKVCache, KVCache

SPARE_TOKENS: Final = KVCache.step
"""Room at the end of an array that is made anew."""


class _Move(NamedTuple):
    """A sequence on its way to another row."""

    to: int
    keys: mx.array
    values: mx.array


class BatchCache(BatchKVCache):  # type: ignore[misc]
    """One layer of left-padded sequences.

    Arrays have the shape ``(rows, heads, tokens, dimension)``, of which the first rows hold one sequence each, from
    ``_start`` on for ``_idx`` tokens. Paddings are counted from ``_start``, too.

    Args:
        left_padding: tokens of padding in front of each sequence.
    """

    def __init__(self, left_padding: Sequence[int]) -> None:
        super().__init__(list(left_padding))
        self.keys: Any
        self.values: Any
        self.offset: mx.array | int
        self.left_padding: mx.array
        self.paddings: list[int]
        self._idx: int
        self._start = 0
        self._pad(list(left_padding))
        self._right_paddings: list[int] = []
        self._moves: list[_Move] = []

    @classmethod
    def merge(cls, caches: Sequence[KVCache]) -> Self:
        """One layer of single sequences, left-padded to the longest."""
        if not any(cache.size() for cache in caches):
            return cls([0] * len(caches))
        if len(caches) > 1:
            merged: Self = super().merge(caches)
            return merged
        (single,), one = caches, cls([0])
        one.keys, one.values = single.keys, single.values
        one._idx = single.offset
        one._pad([0])
        return one

    def prepare(
        self,
        *,
        left_padding: list[int] | None = None,
        lengths: list[int] | None = None,
        right_padding: list[int] | None = None,
    ) -> None:
        """See mlx-lm: what is about to be computed is padded."""
        super().prepare(left_padding=left_padding, lengths=lengths, right_padding=right_padding)
        if left_padding is not None:
            self.paddings = [a + b for a, b in zip(self.paddings, left_padding, strict=True)]
        if self._right_padding is not None and right_padding is not None:
            self._right_paddings = list(right_padding)
            if self.keys is not None:
                self._make_room(len(self.paddings), 0)  # as many rows as there are paddings

    def finalize(self) -> None:
        """See mlx-lm: what was padded on the right is padded on the left from now on."""
        super().finalize()
        if self._right_paddings:
            self.paddings = [a + b for a, b in zip(self.paddings, self._right_paddings, strict=True)]
            self._right_paddings = []

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append tokens to every sequence; returns all there are, of the shape of ``state``."""
        self.settle()
        rows, _, tokens, _ = keys.shape
        if self.keys is None:
            self.keys, self.values = (_room(array, rows, tokens + SPARE_TOKENS) for array in (keys, values))
        elif self._end + tokens > self.keys.shape[2]:
            self._make_room(self.keys.shape[0], tokens)
        written = slice(rows), slice(None), slice(self._end, self._end + tokens)
        self.keys[written], self.values[written] = keys, values
        self.offset += tokens
        self._idx += tokens
        return self._seen(self.keys), self._seen(self.values)

    def filter(self, batch_indices: list[int]) -> None:
        """Keep these rows only, in this order, and no more padding than the longest of them needs.

        Those that are where they shall be cost nothing; others are copied, and written by :meth:`settle`.
        """
        self.settle()
        paddings = [self.paddings[row] for row in batch_indices]
        if self.keys is not None:
            self._moves = [_Move(to, *self._row(row)) for to, row in enumerate(batch_indices) if to != row]
        spare = min(paddings)
        self._start += spare
        self._idx -= spare
        self._pad([padding - spare for padding in paddings])
        if self.keys is not None and 2 * len(self.paddings) <= self.keys.shape[0]:
            self._make_room(len(self.paddings), 0)

    @property
    def moving(self) -> list[mx.array]:
        """What :meth:`settle` will write. If that is evaluated before, nothing else has to be copied."""
        return [array for move in self._moves for array in (move.keys, move.values)]

    def settle(self) -> None:
        """Write the rows that moved to where they are now."""
        moves, self._moves = self._moves, []
        for move in moves:
            self._write(move.to, move.keys, move.values)

    def extend(self, other: BatchCache) -> None:
        """Append the rows of ``other``."""
        self.settle()
        longer = max(other._idx - self._idx, 0)
        rows = len(self.paddings)
        needed = rows + len(other.paddings)
        if self.keys is None and other.keys is not None:
            room = longer + SPARE_TOKENS
            self.keys, self.values = (_room(array, needed, room) for array in (other.keys, other.values))
            self._start = longer
        elif self.keys is not None and (longer > self._start or needed > self.keys.shape[0]):
            self._make_room(max(needed, self.keys.shape[0]), 0, in_front=longer)
        self._start -= longer
        self._idx += longer
        self._pad(
            [padding + longer for padding in self.paddings]
            + [padding + self._idx - other._idx for padding in other.paddings]
        )
        if other.keys is not None and other._idx:
            self._write(rows, other._seen(other.keys), other._seen(other.values))

    def make_room(self, joining: int, longest: int) -> bool:
        """Whether a step with so many more sequences, of at most ``longest`` tokens, needs other arrays; they are made.

        Else it is written where there is room. With nothing here yet, the step makes them.
        """
        if self.keys is None:
            return False
        in_front, rows = max(longest - self._idx, 0), len(self.paddings) + joining
        if in_front <= self._start and rows <= self.keys.shape[0] and self._end < self.keys.shape[2]:
            return False
        self._make_room(max(rows, self.keys.shape[0]), 1, in_front)
        return True

    def extract(self, idx: int) -> KVCache:
        """One row, without its padding."""
        self.settle()
        cache = KVCache()
        cache.keys, cache.values = self._row(idx)
        cache.offset = self._idx - self.paddings[idx]
        return cache

    @property
    def state(self) -> tuple[mx.array, mx.array, mx.array, mx.array]:
        """Keys and values, shape ``(sequences, heads, tokens, dimension)``, tokens and padding of each sequence."""
        self.settle()
        return self._seen(self.keys), self._seen(self.values), self.positions, self.left_padding

    @state.setter
    def state(self, state: tuple[mx.array, mx.array, mx.array, mx.array]) -> None:
        self.keys, self.values, self.offset, self.left_padding = state
        self._start, self._idx = 0, self.keys.shape[2]
        self.paddings = cast(list[int], self.left_padding.tolist())

    def trim(self, n: int) -> int:
        """Take the last tokens of each away; returns how many."""
        self.settle()
        trimmed: int = super().trim(n)
        return trimmed

    @property
    def positions(self) -> mx.array:
        """Of each sequence's next token, shape ``(sequences,)``; ``offset`` of a single one is a number."""
        return self.offset if isinstance(self.offset, mx.array) else mx.array([self.offset])

    def make_mask(self, N: int, return_array: bool = False, **options: Any) -> Any:
        """See mlx-lm; None where one token of each sequence may see everything."""
        if N == 1 and not return_array and not options.get("window_size") and not any(self.paddings):
            return None
        return super().make_mask(N, return_array, **options)

    @property
    def _end(self) -> int:
        return self._start + self._idx

    def _seen(self, array: mx.array) -> mx.array:
        return array[: len(self.paddings), :, self._start : self._end]

    def _row(self, row: int) -> tuple[mx.array, mx.array]:
        """A sequence's keys and values, in arrays of their own."""
        tokens = slice(row, row + 1), slice(None), slice(self._start + self.paddings[row], self._end)
        return mx.contiguous(self.keys[tokens]), mx.contiguous(self.values[tokens])

    def _write(self, row: int, keys: mx.array, values: mx.array) -> None:
        """Sequences from ``row`` on, up to the end."""
        rows, _, tokens, _ = keys.shape
        where = slice(row, row + rows), slice(None), slice(self._end - tokens, self._end)
        self.keys[where], self.values[where] = keys, values

    def _pad(self, paddings: list[int]) -> None:
        """What is known of the sequences, who are as many as paddings."""
        self.paddings = paddings
        self.left_padding = mx.array(paddings)
        tokens = [self._idx - padding for padding in paddings]
        self.offset = mx.array(tokens) if len(tokens) > 1 else tokens[0]

    def _make_room(self, rows: int, tokens: int, in_front: int = 0) -> None:
        """Move all into arrays of so many rows, with room for ``tokens`` and as many to spare as usual."""
        self.settle()
        room = in_front + self._idx + tokens + SPARE_TOKENS
        sequences = len(self.paddings)
        keys, values = self._seen(self.keys), self._seen(self.values)
        where = slice(sequences), slice(None), slice(in_front, in_front + self._idx)
        self.keys, self.values = (_room(array, rows, room) for array in (keys, values))
        self.keys[where], self.values[where] = keys, values
        self._start = in_front


def _room(like: mx.array, rows: int, tokens: int) -> mx.array:
    return mx.zeros((rows, like.shape[1], tokens, like.shape[3]), like.dtype)


class _Joining(KVCache):  # type: ignore[misc]
    """A layer of a sequence that is about to join others."""

    merge = BatchCache.merge


def joining(layers: list[Any]) -> list[Any]:
    """``layers`` of one sequence, for mlx-lm to merge: plain KV caches become a :class:`BatchCache`."""
    return [_joining(layer) if type(layer) is KVCache else layer for layer in layers]


def _joining(layer: KVCache) -> _Joining:
    found = _Joining()
    found.keys, found.values, found.offset = layer.keys, layer.values, layer.offset
    return found
