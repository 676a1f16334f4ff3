"""The normalisations against their formulas in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.nn.layers.norm import GroupNorm, LayerNorm, group_norm, layer_norm


def exact(y, axes, epsilon):
    y = np.asarray(y, np.float64)
    return (y - y.mean(axes, keepdims=True)) / np.sqrt(y.var(axes, keepdims=True) + epsilon)


def inputs(offset=0.0, spread=1.0):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 5, 7, 24)) * spread + offset
    return x.astype(np.float32), *rng.standard_normal((2, 24)).astype(np.float32)


# A mean of 1,000 rounds to 6e-5, times a scale of up to 3; a variance in one pass would be off by 6e-2 there
@pytest.mark.parametrize(("offset", "spread", "tolerance"), [(0, 1, 3e-6), (1000, 1, 1e-3), (0, 1e-4, 3e-6)])
def test_group_norm_equals_float64(offset, spread, tolerance):
    x, scale, bias = inputs(offset, spread)
    got = group_norm(jnp.asarray(x), jnp.asarray(scale), jnp.asarray(bias), groups=6, epsilon=1e-5)
    want = exact(x.reshape(2, 5, 7, 6, 4), (1, 2, 4), 1e-5).reshape(x.shape) * scale + bias
    np.testing.assert_allclose(got, want, atol=tolerance)


@pytest.mark.parametrize(("offset", "spread", "tolerance"), [(0, 1, 3e-6), (1000, 1, 1e-3), (0, 1e-4, 3e-6)])
def test_layer_norm_equals_float64(offset, spread, tolerance):
    x, scale, bias = inputs(offset, spread)
    got = layer_norm(jnp.asarray(x), jnp.asarray(scale), jnp.asarray(bias), epsilon=1e-5)
    np.testing.assert_allclose(got, exact(x, -1, 1e-5) * scale + bias, atol=tolerance)


@pytest.mark.parametrize("module", [GroupNorm(6, 1e-5, jnp.float16), LayerNorm(1e-5, jnp.float16)], ids=str)
def test_half_precision_keeps_statistics_in_float32(module):
    x = (inputs()[0] * 20_000).clip(-60_000, 60_000).astype(np.float16)  # squares overflow float16 by far
    got = module.apply(module.init(jax.random.key(0), jnp.asarray(x)), jnp.asarray(x))
    assert got.dtype == jnp.float16
    grouped, axes = (x.reshape(2, 5, 7, 6, 4), (1, 2, 4)) if isinstance(module, GroupNorm) else (x, -1)
    np.testing.assert_allclose(got, exact(grouped, axes, 1e-5).reshape(x.shape), atol=4e-3)  # half's last bit at 4


def test_group_norm_refuses_groups_that_do_not_divide():
    x, scale, bias = inputs()
    with pytest.raises(ValueError, match="24 channels do not divide into 5 groups"):
        group_norm(jnp.asarray(x), jnp.asarray(scale), jnp.asarray(bias), groups=5, epsilon=1e-5)
