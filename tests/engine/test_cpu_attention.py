"""Attention out of additions and products is MLX's own, up to fp32's last bits."""

import math

import mlx.core as mx
import pytest

from lanes.engines import cpu_attention
from tests.engine.attention import tensors

BUILTIN = cpu_attention._builtin
TOLERANCE = 5e-5


def padded(batch, queries, keys):
    """A causal mask for sequences that are padded on the left, each more than the one before."""
    at = mx.arange(keys)
    causal = mx.arange(keys - queries, keys)[:, None] >= at
    return causal & (at >= 2 * mx.arange(batch)[:, None, None, None])


@pytest.mark.parametrize(("heads", "key_heads"), [(8, 4), (4, 4), (6, 1)])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 40), (7, 40), (40, 40)])
@pytest.mark.parametrize("kind", ["none", "causal", "booleans", "padded", "numbers", "by head"])
@pytest.mark.parametrize("block", [1, 500, cpu_attention.BLOCK])
def test_it_is_the_attention_that_mlx_computes(monkeypatch, heads, key_heads, queries, keys, kind, block):
    monkeypatch.setattr(cpu_attention, "BLOCK", block)
    monkeypatch.setattr(cpu_attention, "FEW", 0)
    batch = 3
    q, k, v = tensors(batch, heads, key_heads, queries, keys)
    mask = {
        "none": None,
        "causal": "causal",
        "booleans": mx.arange(keys - queries, keys)[:, None] >= mx.arange(keys),
        "padded": padded(batch, queries, keys),
        "numbers": mx.random.normal((queries, keys), key=mx.random.key(9)),
        "by head": mx.random.normal((batch, heads, queries, keys), key=mx.random.key(9)),
    }[kind]
    expected = BUILTIN(q, k, v, scale=0.25, mask=mask)
    found = cpu_attention.attention(q, k, v, scale=0.25, mask=mask)
    assert found.shape == expected.shape
    assert mx.allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE).item()


@pytest.mark.parametrize("kind", ["none", "causal", "padded", "by head", "broadcast"])
@pytest.mark.parametrize("batch", [8, 9])
def test_sequences_on_two_streams_get_what_they_would_get_on_one(monkeypatch, batch, kind):
    monkeypatch.setattr(cpu_attention, "FEW", 0)
    queries, keys = 3, 40
    q, k, v = tensors(batch, 8, 4, queries, keys)
    mask = {
        "none": None,
        "causal": "causal",
        "padded": padded(batch, queries, keys),
        "by head": mx.random.normal((batch, 8, queries, keys), key=mx.random.key(9)),
        "broadcast": mx.random.normal((1, 1, queries, keys), key=mx.random.key(9)),
    }[kind]
    on_one = cpu_attention.attention(q, k, v, scale=0.25, mask=mask)
    streams = []
    whole = mx.stream
    monkeypatch.setattr(mx, "stream", lambda stream: streams.append(stream) or whole(stream))
    monkeypatch.setattr(cpu_attention, "MANY", 1)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    on_two = cpu_attention.attention(q, k, v, scale=0.25, mask=mask)
    assert mx.array_equal(on_two, on_one).item()
    assert len(streams) == 1


def test_what_mlx_is_faster_at_is_left_to_it():
    key_heads, heads, keys = 4, 8, cpu_attention.FEW // 8
    few, many = tensors(1, heads, key_heads, 1, keys), tensors(1, heads, key_heads, 1, keys + 1)
    found = [cpu_attention.attention(q, k, v, scale=0.25) for q, k, v in (few, many)]
    expected = [BUILTIN(q, k, v, scale=0.25) for q, k, v in (few, many)]
    assert mx.array_equal(found[0], expected[0]).item()
    assert not mx.array_equal(found[1], expected[1]).item()
    assert mx.allclose(found[1], expected[1], rtol=TOLERANCE, atol=TOLERANCE).item()


def test_what_it_cannot_do_is_left_to_mlx():
    q, k, v = (tensor.astype(mx.float16) for tensor in tensors(1, 4, 2, 5, 5))
    sinks = mx.zeros((4,), mx.float16)
    for options in ({}, {"sinks": sinks}):
        found = cpu_attention.attention(q, k, v, scale=0.25, mask="causal", **options)
        assert mx.array_equal(found, BUILTIN(q, k, v, scale=0.25, mask="causal", **options)).item()


def test_powers_of_two_are_exact_to_a_unit_in_the_last_place_and_never_infinite_or_negative():
    points = [-126.0 + 126.0 * i / 9973 for i in range(9974)]
    for t, found in zip(points, cpu_attention.exp2(mx.array(points)).tolist(), strict=True):
        rounded = mx.array(t).item()
        assert found == pytest.approx(2.0**rounded, rel=3e-7)
    assert cpu_attention.exp2(mx.array([0.0])).item() == pytest.approx(1, rel=1.2e-7)
    far = cpu_attention.exp2(mx.array([-127.5, -1e30, -math.inf])).tolist()
    assert all(0 < power < 2e-38 for power in far)
