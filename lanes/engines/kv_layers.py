"""mlx-lm's KV caches of one sequence, as :mod:`lanes.engines.prompt_caches` keeps them.

Arrays are never copied here. In mlx an array is a value: a cache that writes "in place" writes into a new buffer as
long as anybody else still has the old one.
"""

from __future__ import annotations

import copy
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import KVCache, can_trim_prompt_cache, trim_prompt_cache

STEP_TOKENS = KVCache.step


class KVLayers:
    """One model's layers behind ``tokens`` tokens: given away by whoever computed them, and not changed any more.

    Args:
        layers: one of mlx-lm's caches for each layer, of a single sequence.
        tokens: at least one.
    """

    def __init__(self, layers: list[Any], tokens: int) -> None:
        self._layers = layers
        self.tokens = tokens
        self.size_bytes = sum(int(layer.nbytes) for layer in layers)
        self.trimmable = bool(can_trim_prompt_cache(layers))

    def prefix(self, tokens: int) -> list[Any]:
        """See :class:`lanes.engines.prompt_caches.Layers`."""
        layers: list[Any] = copy.deepcopy(self._layers)
        if tokens < self.tokens:
            trim_prompt_cache(layers, self.tokens - tokens)
        for layer in layers:
            if type(layer) is KVCache:
                _cut(layer)
        return layers


def compute(layers: list[Any]) -> None:
    """Have arrays computed that are still a plan, without waiting: what they are made of can go then."""
    mx.async_eval([layer.state for layer in layers])  # type: ignore[no-untyped-call]


def _cut(layer: KVCache) -> None:
    """Let go of what was trimmed: the first write copies what is there."""
    end = -(-layer.offset // STEP_TOKENS) * STEP_TOKENS
    layer.keys = layer.keys[..., :end, :]
    layer.values = layer.values[..., :end, :]
