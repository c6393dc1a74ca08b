"""The gated activation out of additions and products is mlx-lm's own, up to fp32's last bits."""

import mlx.core as mx
import pytest
from mlx_lm.models import llama

from lanes.engines import cpu_activations

TOLERANCE = 5e-6


def test_it_is_the_activation_that_mlx_lm_computes(monkeypatch):
    gate = mx.concatenate([mx.linspace(-20, 20, 4001), mx.array([-1e30, -200.0, -88.0, 0.0, 88.0, 1e30])])
    x = mx.random.normal(gate.shape, key=mx.random.key(3))
    expected = cpu_activations._builtin(gate, x)
    for few in (0, gate.size):
        monkeypatch.setattr(cpu_activations, "FEW", few)
        assert mx.allclose(cpu_activations.swiglu(gate, x), expected, rtol=TOLERANCE, atol=TOLERANCE).item()


@pytest.mark.parametrize("tokens", [1, 7, 8])
def test_of_many_numbers_each_half_is_what_it_would_be_in_one(monkeypatch, tokens):
    gate, x = (mx.random.normal((2, tokens, 9), key=mx.random.key(seed)) for seed in (1, 2))
    monkeypatch.setattr(cpu_activations, "FEW", 0)
    monkeypatch.setattr(cpu_activations, "several_cores", lambda: True)
    in_one = cpu_activations.swiglu(gate, x)
    monkeypatch.setattr(cpu_activations, "MANY", 1)
    halves, seen = cpu_activations.in_halves, []
    monkeypatch.setattr(cpu_activations, "in_halves", lambda *args, **of: seen.append(args) or halves(*args, **of))
    assert mx.array_equal(cpu_activations.swiglu(gate, x), in_one).item()
    assert len(seen) == 1


def test_other_types_are_left_to_mlx_lm():
    gate, x = (mx.random.normal((64,), dtype=mx.float16, key=mx.random.key(seed)) for seed in (1, 2))
    assert mx.array_equal(cpu_activations.swiglu(gate, x), cpu_activations._builtin(gate, x)).item()


@pytest.mark.usefixtures("pair")
def test_models_that_were_imported_before_use_it():
    assert llama.swiglu is cpu_activations.swiglu
