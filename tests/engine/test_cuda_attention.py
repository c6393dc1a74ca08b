"""Attention that is not planned is MLX's own, up to fp32's last bits. It computes on every backend."""

import mlx.core as mx
import pytest

from lanes.engines import cuda_attention
from tests.engine.attention import tensors

BUILTIN = cuda_attention._builtin


@pytest.mark.parametrize(("heads", "key_heads"), [(8, 4), (4, 4), (6, 1)])
@pytest.mark.parametrize("queries", [1, 2, cuda_attention.ROW_BY_ROW, cuda_attention.ROW_BY_ROW + 1, 40])
@pytest.mark.parametrize("before", [0, 1, 37])
def test_it_is_the_causal_attention_that_mlx_computes(heads, key_heads, queries, before):
    q, k, v = tensors(2, heads, key_heads, queries, before + queries)
    found = cuda_attention.attention(q, k, v, scale=0.25, mask="causal")
    expected = BUILTIN(q, k, v, scale=0.25, mask="causal")
    assert found.shape == expected.shape
    assert mx.allclose(found, expected, rtol=5e-5, atol=5e-5).item()


@pytest.mark.parametrize("queries", [2, 5, 40, cuda_attention.UNPLANNED, cuda_attention.UNPLANNED + 1])
def test_only_long_chunks_and_other_masks_are_left_to_mlx(monkeypatch, queries):
    seen = []

    def recorded(q, *tensors, **options):
        seen.append(q.shape[2])
        return BUILTIN(q, *tensors, **options)

    monkeypatch.setattr(cuda_attention, "_builtin", recorded)
    q, k, v = tensors(1, 4, 2, queries, queries + 3)
    cuda_attention.attention(q, k, v, scale=0.25, mask="causal")
    planned = [length for length in seen if length > 1]
    assert planned == ([queries] if queries > cuda_attention.UNPLANNED else [])
    seen.clear()
    mask = mx.ones((queries, queries + 3), mx.bool_)
    for other in (None, mask):
        found = cuda_attention.attention(q, k, v, scale=0.25, mask=other)
        assert mx.array_equal(found, BUILTIN(q, k, v, scale=0.25, mask=other)).item()
    assert seen == [queries, queries]
