"""The gated activation out of additions and products is mlx-lm's own, up to fp32's last bits."""

import mlx.core as mx
import pytest
from mlx_lm.models import llama

from lanes.engines import cpu_activations

TOLERANCE = 5e-6


def test_it_is_the_activation_that_mlx_lm_computes():
    gate = mx.concatenate([mx.linspace(-20, 20, 4001), mx.array([-1e30, -200.0, -88.0, 0.0, 88.0, 1e30])])
    x = mx.random.normal(gate.shape, key=mx.random.key(3))
    found, expected = cpu_activations.swiglu(gate, x), cpu_activations._builtin(gate, x)
    assert mx.allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE).item()


def test_other_types_are_left_to_mlx_lm():
    gate, x = (mx.random.normal((64,), dtype=mx.float16, key=mx.random.key(seed)) for seed in (1, 2))
    assert mx.array_equal(cpu_activations.swiglu(gate, x), cpu_activations._builtin(gate, x)).item()


@pytest.mark.usefixtures("pair")
def test_models_that_were_imported_before_use_it():
    assert llama.swiglu is cpu_activations.swiglu
