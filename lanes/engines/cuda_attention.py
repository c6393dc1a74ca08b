"""Attention for MLX's CUDA backend, where a short piece of a sequence costs more to plan than to compute.

For more than one query MLX calls cuDNN, which plans anew for every number of queries and of keys (``sdpa_cudnn`` in
mlx 0.32, ``mlx/backend/cuda/scaled_dot_product_attention.cpp``). A speculative round has a number of keys of its own,
and so have most prompts. Measured on an H200, 3 B bf16 target of 28 layers: a plan takes 50 to 80 ms, the whole forward
pass of one token 4.5 ms, of five with their plan 57 ms. So few queries are computed one by one, as decoding does
(five: 7.4 ms, nine: 8.9 ms), and a chunk of a prompt by single operations; only long chunks, which come in few shapes,
are worth their plan.
"""

from __future__ import annotations

from typing import Any, Final

import mlx.core as mx

ROW_BY_ROW: Final = 9
"""Up to so many queries: a round of the usual eight draft tokens."""

UNPLANNED: Final = 256
"""Up to so many queries the scores are small enough to be written out."""

_builtin = mx.fast.scaled_dot_product_attention


def install() -> None:
    """Let every model of this process use it."""
    mx.fast.scaled_dot_product_attention = attention


def attention(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    *,
    scale: float,
    mask: mx.array | str | None = None,
    sinks: mx.array | None = None,
    **options: Any,
) -> mx.array:
    """Softmax attention, as ``mx.fast.scaled_dot_product_attention`` has it.

    Args:
        q: queries, shape ``(batch, heads, queries, dimension)``.
        k: keys, shape ``(batch, key heads, keys, dimension)``; heads are a multiple of the key heads.
        v: values, shape ``(batch, key heads, keys, value dimension)``.
        scale: factor of the products of queries and keys.
        mask: ``"causal"``; others are left to MLX, as are long chunks and single queries.
        sinks: left to MLX.

    Returns:
        Shape ``(batch, heads, queries, value dimension)``.
    """
    queries, keys = q.shape[2], k.shape[2]
    if not isinstance(mask, str) or sinks is not None or not 1 < queries <= min(UNPLANNED, keys):
        return _builtin(q, k, v, scale=scale, mask=mask, sinks=sinks, **options)
    if queries > ROW_BY_ROW:
        return _written_out(q * scale, k, v)
    rows = []
    for row in range(queries):
        seen = keys - queries + row + 1
        rows.append(_builtin(q[:, :, row : row + 1], k[:, :, :seen], v[:, :, :seen], scale=scale))
    return mx.concatenate(rows, axis=2)


def _written_out(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
    """Causal attention of scaled queries."""
    batch, heads, queries, dimension = q.shape
    key_heads, keys = k.shape[1], k.shape[2]
    scores = q.reshape(batch, key_heads, -1, dimension) @ k.swapaxes(-1, -2)
    seen = mx.arange(keys - queries, keys)[:, None] >= mx.arange(keys)
    by_query = scores.reshape(batch, heads, queries, keys)
    weights = mx.softmax(mx.where(seen, by_query, mx.finfo(scores.dtype).min), axis=-1, precise=True)
    return (weights.reshape(scores.shape) @ v).reshape(batch, heads, queries, -1)
