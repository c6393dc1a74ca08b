"""Attention for MLX's CPU backend, where the exponentials of the softmax take longer than all its matrix products.

MLX has no attention kernel for a CPU: ``mx.fast.scaled_dot_product_attention`` falls back to single operations there.
Its ``exp`` computes one number at a time on x86-64, about 9 ns each, while additions and products of arrays take a
third of a nanosecond. So the exponential is made of those here: 2**t is 2**i, put into the exponent's bits, times a
polynomial of degree 5 in the rest, -0.5 <= t - i <= 0.5 (Chebyshev fit; relative error at most 3e-7, three units of the
last place in fp32; the method is that of Cody and Waite, "Software Manual for the Elementary Functions", 1980, chapter
6). Query heads that share keys are also stacked into one product, and scores are worked on in blocks. Measured with 128
queries against 2,048 keys, 8 heads: 30 ms instead of 58; 32 sequences of 1,024 tokens that decode one each: 13 ms
instead of 20. For few scores MLX's own takes less, as it has fewer operations.

None of these operations uses more than one core, so the sequences of a large batch are shared out to two streams: on
two cores a decode step took 0.76 of the time with 32 sequences of 600 tokens each, and 0.96 with eight of 850.
"""

from __future__ import annotations

import math
from typing import Any, Final

import mlx.core as mx

from lanes.engines.cpu_streams import in_halves, several_cores

LOG2_E: Final = math.log2(math.e)
_COEFFICIENTS: Final = (0.00134004, 0.00967604, 0.05550327, 0.24022107, 0.69314721, 1.00000008)
"""Of 2**x, highest power first."""

BLOCK = 1 << 17
"""Scores that are worked on at a time: half a megabyte stays in a core's cache from one operation to the next, where
8 MB took two and a half times as long for each."""

FEW: Final = 4096
"""Scores up to which MLX's own attention is the faster: one query of 8 heads against 100 keys took 0.12 ms instead of
0.20, against 350 as long, and against 900 1.07 instead of 0.86."""

MANY: Final = 40_000
"""Scores from which two streams are faster than one: what they cost is to wait for each other, in every layer."""

LEAST_SEQUENCES: Final = 8
"""Of a batch that is shared out."""

_SMALLEST_EXPONENT: Final = -126.0
LARGEST_EXPONENT: Final = 126.0
_MANTISSA_BITS: Final = 23
_ROUNDS: Final = 1.5 * 2**_MANTISSA_BITS
"""Added to a small number it leaves no bits for a fraction: the last bits of the sum are the nearest integer's, in
two's complement. ``mx.round`` takes three times as long."""

_MASKED: Final = -1e30
"""Added to scores that do not count: small beside every other, but not too small to be multiplied by a distance."""

_builtin = mx.fast.scaled_dot_product_attention


def install() -> None:
    """Let every model of this process use it."""
    mx.fast.scaled_dot_product_attention = attention


def exp2(t: mx.array) -> mx.array:
    """2**t for fp32 ``t`` of at most 126; below 2**-126 it stays there, about 1e-38."""
    t = mx.maximum(t, _SMALLEST_EXPONENT)
    rounded = t + _ROUNDS
    rest = t - (rounded - _ROUNDS)
    power = rest * _COEFFICIENTS[0] + _COEFFICIENTS[1]
    for coefficient in _COEFFICIENTS[2:]:
        power = power * rest + coefficient
    bits = power.view(mx.int32) + mx.left_shift(rounded.view(mx.int32), _MANTISSA_BITS)
    return bits.view(mx.float32)


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
        mask: None, ``"causal"``, booleans (True: look) or numbers to add, of a shape that broadcasts to
            ``(batch, heads, queries, keys)``.
        sinks: left to MLX, as are other types than fp32, and no more scores than :data:`FEW`.

    Returns:
        Shape ``(batch, heads, queries, value dimension)``.
    """
    batch, heads, queries, _ = q.shape
    scores = batch * heads * queries * k.shape[2]
    if scores <= FEW or sinks is not None or q.dtype != mx.float32 or k.dtype != mx.float32:
        return _builtin(q, k, v, scale=scale, mask=mask, sinks=sinks, **options)
    if scores < MANY or batch < LEAST_SEQUENCES or not several_cores():
        return _attention(q, k, v, scale, mask)

    def of(sequences: slice) -> mx.array:
        return _attention(q[sequences], k[sequences], v[sequences], scale, _of_sequences(mask, sequences))

    return in_halves(of, batch, axis=0)


def _of_sequences(mask: mx.array | str | None, sequences: slice) -> mx.array | str | None:
    """The part of a mask, which may be broadcast along the first axis."""
    if mask is None or isinstance(mask, str) or mask.ndim < 4 or mask.shape[0] == 1:
        return mask
    return mask[sequences]


def _attention(q: mx.array, k: mx.array, v: mx.array, scale: float, mask: mx.array | str | None) -> mx.array:
    batch, heads, queries, _ = q.shape
    key_heads, keys = k.shape[1], k.shape[2]
    shared = heads // key_heads
    q = (q * (scale * LOG2_E)).reshape(batch, key_heads, shared, queries, -1)
    causal = isinstance(mask, str) and queries > 1
    bias = None if mask is None or isinstance(mask, str) else _for_groups(_added(mask), key_heads, shared)
    if batch * heads * queries * keys <= BLOCK:
        if causal:
            bias = _causal(queries, keys)
        return _attend(q, k, v, bias).reshape(batch, heads, queries, -1)
    by_query = []
    for rows in _evenly(queries, max(BLOCK // (batch * shared * keys), 1)):
        seen = keys - queries + rows.stop if causal else keys
        part = _causal(rows.stop - rows.start, seen) if causal else None
        by_head = []
        for head in range(key_heads):
            one = slice(head, head + 1)
            if bias is not None:
                part = _part(bias, one, rows)
            by_head.append(_attend(q[:, one, :, rows], k[:, one, :seen], v[:, one, :seen], part))
        by_query.append(mx.concatenate(by_head, axis=1))
    found = by_query[0] if len(by_query) == 1 else mx.concatenate(by_query, axis=3)
    return found.reshape(batch, heads, queries, -1)


def _evenly(count: int, at_most: int) -> list[slice]:
    """``count`` rows in as few parts as may be, all of about the same size."""
    size = -(-count // -(-count // at_most))
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _attend(q: mx.array, k: mx.array, v: mx.array, bias: mx.array | None) -> mx.array:
    """Scaled queries ``(batch, key heads, shared, queries, dimension)``, all at a time."""
    batch, key_heads, shared, queries, dimension = q.shape
    scores = q.reshape(batch, key_heads, shared * queries, dimension) @ k.swapaxes(-1, -2)
    if bias is not None:
        by_query = scores.reshape(batch, key_heads, shared, queries, -1)
        scores = (by_query + bias).reshape(batch, key_heads, shared * queries, -1)
    weights = exp2(scores - scores.max(axis=-1, keepdims=True))
    out = (weights @ v) / weights.sum(axis=-1, keepdims=True)
    return out.reshape(batch, key_heads, shared, queries, -1)


def _causal(queries: int, keys: int) -> mx.array:
    """What is added to the scores of the last ``queries`` of so many tokens, shape ``(queries, keys)``."""
    query = mx.arange(keys - queries, keys, dtype=mx.float32)[:, None]
    return mx.maximum(mx.arange(keys, dtype=mx.float32) - query, 0) * _MASKED


def _added(mask: mx.array) -> mx.array:
    """A mask as what is added to scores in powers of two. Additions are what takes least here."""
    return (1 - mask.astype(mx.float32)) * _MASKED if mask.dtype == mx.bool_ else mask * LOG2_E


def _for_groups(bias: mx.array, key_heads: int, shared: int) -> mx.array:
    """A bias for ``(batch, heads, queries, keys)`` as one for ``(batch, key heads, shared, queries, keys)``."""
    if bias.ndim < 3:
        return bias
    *batch, heads, queries, keys = bias.shape
    grouped = (1, 1) if heads == 1 else (key_heads, shared)
    return bias.reshape(*batch, *grouped, queries, keys)


def _part(bias: mx.array, heads: slice, rows: slice) -> mx.array:
    """What a block needs of a bias, which may be broadcast along any axis."""
    if bias.shape[-2] > 1:
        bias = bias[..., rows, :]
    return bias[:, heads] if bias.ndim == 5 and bias.shape[1] > 1 else bias
