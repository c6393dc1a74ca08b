"""A KV cache of several sequences whose paddings are known without asking the device.

mlx-lm's :class:`~mlx_lm.models.cache.BatchKVCache` keeps them in an array only. Whenever a sequence joins or leaves it
reads them back, layer by layer, and each time waits for the step that the device is at work on. With them at hand
nothing is waited for. Measured on an H200, 28 layers, 32 sequences: see ``bench/README.md``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import mlx.core as mx
from mlx_lm.models.cache import BatchKVCache, KVCache


class BatchCache(BatchKVCache):  # type: ignore[misc]
    """One layer of left-padded sequences.

    Args:
        left_padding: tokens of padding in front of each sequence.
    """

    def __init__(self, left_padding: Sequence[int]) -> None:
        super().__init__(list(left_padding))
        self.keys: Any
        self.values: Any
        self.offset: mx.array
        self.left_padding: mx.array
        self._idx: int
        self.paddings = list(left_padding)
        self._right_paddings: list[int] = []

    @classmethod
    def merge(cls, caches: Sequence[KVCache]) -> Self:
        """One layer of single sequences, left-padded to the longest."""
        if not any(cache.size() for cache in caches):
            return cls([0] * len(caches))
        merged: Self = super().merge(caches)
        return merged

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

    def finalize(self) -> None:
        """See mlx-lm: what was padded on the right is padded on the left from now on."""
        super().finalize()
        if self._right_paddings:
            self.paddings = [a + b for a, b in zip(self.paddings, self._right_paddings, strict=True)]
            self._right_paddings = []

    def filter(self, batch_indices: list[int]) -> None:
        """Keep these rows only, and no more padding than the longest of them needs."""
        kept = [self.paddings[row] for row in batch_indices]
        spare = min(kept)
        if self.keys is not None:
            self.keys = self.keys[..., spare:, :][batch_indices]
            self.values = self.values[..., spare:, :][batch_indices]
            self._idx -= spare
        self.offset = self.offset[batch_indices]
        self.left_padding = self.left_padding[batch_indices] - spare
        self.paddings = [padding - spare for padding in kept]

    def extend(self, other: BatchCache) -> None:
        """Append the rows of ``other``."""
        longest = max(self._idx, other._idx)
        empty = self.keys is None and other.keys is None
        more = [0, 0] if empty else [longest - self._idx, longest - other._idx]
        super().extend(other)
        rows = zip((self.paddings, other.paddings), more, strict=True)
        self.paddings = [padding + added for paddings, added in rows for padding in paddings]

    def extract(self, idx: int) -> KVCache:
        """One row, without its padding."""
        cache = KVCache()
        row = slice(idx, idx + 1), slice(None), slice(self.paddings[idx], self._idx)
        cache.keys, cache.values = mx.contiguous(self.keys[row]), mx.contiguous(self.values[row])
        cache.offset = self._idx - self.paddings[idx]
        return cache


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
