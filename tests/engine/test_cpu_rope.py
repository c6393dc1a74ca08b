"""Positions rotate as MLX has it, to the last bit."""

import threading

import mlx.core as mx
import pytest

from lanes.engines import cpu_rope

BUILTIN = cpu_rope._builtin


def numbers(batch, heads, tokens, dimension):
    """As models have them: of neighbouring tokens, turned."""
    return mx.random.normal((batch, tokens, heads, dimension), key=mx.random.key(5)).transpose(0, 2, 1, 3)


@pytest.mark.parametrize("few", [0, cpu_rope.FEW])
@pytest.mark.parametrize(("tokens", "offset"), [(1, 0), (1, 7001), (5, 40), (33, 0)])
@pytest.mark.parametrize(("dimension", "dims"), [(16, 16), (64, 64), (16, 8)])
@pytest.mark.parametrize(("base", "scale"), [(10_000.0, 1.0), (1e6, 0.25)])
def test_it_is_the_rotation_that_mlx_computes(monkeypatch, few, tokens, offset, dimension, dims, base, scale):
    monkeypatch.setattr(cpu_rope, "FEW", few)
    a = numbers(2, 3, tokens, dimension)
    options = {"traditional": False, "base": base, "scale": scale, "offset": offset}
    for _ in range(2):  # the second time the angles are known
        assert mx.array_equal(cpu_rope.rope(a, dims, **options), BUILTIN(a, dims, **options)).item()


@pytest.mark.parametrize(
    "options",
    [
        {"offset": mx.array([3, 4])},
        {"traditional": True},
        {"base": None, "freqs": mx.arange(1, 9, dtype=mx.float32)},
    ],
)
def test_what_it_cannot_do_is_left_to_mlx(options):
    a = numbers(2, 3, 4, 16)
    options = {"traditional": False, "base": 1e4, "scale": 1.0, "offset": 5, **options}
    assert mx.array_equal(cpu_rope.rope(a, 16, **options), BUILTIN(a, 16, **options)).item()
    half = a.astype(mx.float16)
    options = {"traditional": False, "base": 1e4, "scale": 1.0, "offset": 5}
    assert mx.array_equal(cpu_rope.rope(half, 16, **options), BUILTIN(half, 16, **options)).item()


def test_angles_that_one_thread_has_not_computed_are_none_of_another_s():
    a = numbers(1, 1, 2, 8)
    options = {"traditional": False, "base": 12345.0, "scale": 1.0, "offset": 99}
    cpu_rope.rope(a, 8, **options)  # and nobody looks at it
    found = []

    def elsewhere():
        with mx.stream(mx.new_stream(mx.cpu)):
            found.append(cpu_rope.rope(mx.array(values), 8, **options).tolist())

    values = a.tolist()
    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [BUILTIN(a, 8, **options).tolist()]
