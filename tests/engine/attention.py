"""What attention is given, in tests of either backend's."""

import mlx.core as mx


def tensors(batch, heads, key_heads, queries, keys, dimension=16):
    """Queries, keys and values, large enough that their softmax is sharp."""
    shapes = [(batch, heads, queries, dimension), (batch, key_heads, keys, dimension), (batch, key_heads, keys, 24)]
    return [3 * mx.random.normal(shape, key=mx.random.key(number)) for number, shape in enumerate(shapes)]
