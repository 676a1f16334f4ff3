"""LPIPS: a PyTorch reference's distances and gradients on random weights, and what holds for any.

golden/autoencoder.npz is made by tests/autoencoder_peer.py.
"""

import functools

import autoencoder_peer as peer
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.nn.metrics.lpips import LPIPS, unit

import reference


@functools.cache
def params():
    return peer.lpips_case()[0]


@functools.cache
def compiled(dtype="float32"):
    """Returns (distances, gradient of their sum to the second picture) of two pictures."""

    def run(params, image, other):
        def total(other):
            distances = LPIPS(jnp.dtype(dtype)).apply({"params": params}, image, other)
            return distances.sum(), distances

        gradient, distances = jax.grad(total, has_aux=True)(other)
        return distances, gradient

    return jax.jit(run)


def relative_error(got, want):
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape
    return np.linalg.norm(got - want) / np.linalg.norm(want)


def test_distance_and_gradient_equal_the_references():
    arrays = reference.golden("autoencoder")
    distances, gradient = compiled()(params(), peer.pictures(0), peer.pictures(1))
    assert distances.dtype == jnp.float32
    assert relative_error(distances, arrays["lpips/value"]) < 1e-5  # float32 rounding
    assert relative_error(gradient, arrays["lpips/gradient"]) < 1e-5


@pytest.mark.torch
@pytest.mark.parametrize("size", [(32, 32), (37, 50), (16, 31)])  # sides that poolings cut, too
def test_distance_and_gradient_equal_the_references_at_any_size(size):
    tree, tensors = peer.lpips_case()
    a, b = peer.pictures(0, size), peer.pictures(1, size)
    lpips = peer.Lpips(tensors)
    value, gradient = peer.gradient(lambda x: lpips(peer.doubles(a), x), b)
    got = compiled()(tree, a, b)
    assert relative_error(got[0], value) < 1e-5
    assert relative_error(got[1], gradient) < 1e-5


def test_equal_pictures_have_distance_0_and_nowhere_to_go():
    distances, gradient = compiled()(params(), peer.pictures(0), peer.pictures(0))
    assert not np.any(distances)
    assert not np.any(gradient)


def test_the_order_of_two_pictures_does_not_matter():
    a, b = peer.pictures(0), peer.pictures(1)
    np.testing.assert_allclose(compiled()(params(), a, b)[0], compiled()(params(), b, a)[0], rtol=1e-6)


@pytest.mark.slow
def test_half_precision_stays_near_float32():
    distances, _ = compiled("bfloat16")(params(), peer.pictures(0), peer.pictures(1))
    assert distances.dtype == jnp.float32
    assert relative_error(distances, reference.golden("autoencoder")["lpips/value"]) < 0.03


def test_positions_without_features_have_a_gradient_of_0():
    x = jnp.array([[[[3.0, 4.0], [0.0, 0.0]]]])
    np.testing.assert_allclose(unit(x), [[[[0.6, 0.8], [0.0, 0.0]]]], rtol=1e-6)
    gradient = jax.grad(lambda x: (unit(x) * jnp.array([1.0, 2.0])).sum())(x)
    # of (v / |v|) w: (w - v (v w) / |v|^2) / |v|, with v w = 11 and |v| = 5
    np.testing.assert_allclose(gradient, [[[[(1 - 33 / 25) / 5, (2 - 44 / 25) / 5], [0.0, 0.0]]]], rtol=1e-5)


def test_pictures_too_small_for_four_poolings_are_refused():
    image = jnp.zeros((1, 64, 15, 3))
    with pytest.raises(ValueError, match="at least 16 pixels a side; got 64 x 15"):
        jax.eval_shape(LPIPS().init, jax.random.key(0), image, image)
