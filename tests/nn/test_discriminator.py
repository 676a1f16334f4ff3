"""The discriminator: a PyTorch reference's logits and gradients on random weights, its norms' batch, its start.

golden/autoencoder.npz is made by tests/autoencoder_peer.py.
"""

import functools

import autoencoder_peer as peer
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from sdjax.nn.metrics.discriminator import BatchNorm, Discriminator
from sdjax.pipeline import placement

import reference


@functools.cache
def params():
    return peer.discriminator_case()[0]


def relative_error(got, want):
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape
    return np.linalg.norm(got - want) / np.linalg.norm(want)


@functools.cache
def compiled():
    """Returns (squared logits, gradients of their sum to parameters and picture)."""

    def run(params, image):
        def total(params, image):
            squares = jnp.square(Discriminator().apply({"params": params}, image))
            return squares.sum(), squares

        gradients, squares = jax.grad(total, (0, 1), has_aux=True)(params, image)
        return squares, *gradients

    return jax.jit(run)


def test_logits_and_gradient_equal_the_references():
    arrays = reference.golden("autoencoder")
    value, _, gradient = compiled()(params(), peer.pictures(0))
    assert relative_error(value, arrays["discriminator/value"]) < 1e-5  # float32 rounding
    assert relative_error(gradient, arrays["discriminator/gradient"]) < 1e-5


@pytest.mark.torch
@pytest.mark.parametrize("size", [(32, 32), (33, 50)])
def test_logits_and_gradients_equal_the_references_at_any_size(size):
    tree, tensors = peer.discriminator_case()
    judge, image = peer.discriminator(tensors), peer.pictures(0, size)
    value, gradient = peer.gradient(lambda x: judge(x).square(), image)
    got, of_params, of_image = compiled()(tree, image)
    assert relative_error(got, value) < 1e-5
    assert relative_error(of_image, gradient) < 1e-5
    of_params = peer.as_tensors(of_params)
    for name, parameter in judge.named_parameters():
        assert relative_error(of_params[f"main.{name}"], parameter.grad.numpy()) < 2e-5


def test_released_size():
    image = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
    logits, variables = jax.eval_shape(Discriminator().init_with_output, jax.random.key(0), image)
    assert logits.shape == (1, 30, 30, 1)  # pix2pix's PatchGAN of 70 x 70
    # 2,768,705 are those of pix2pix, whose discriminator sees two pictures: 3 x 64 x 4 x 4 more
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == 2_768_705 - 3072


def test_it_starts_as_the_references():
    started = jax.jit(Discriminator().init)(jax.random.key(0), jnp.zeros((1, 24, 24, 3)))["params"]
    for name, count in ("main_0", 3072), ("main_8", 2_097_152):
        kernel = started[name]["kernel"]
        assert kernel.std() == pytest.approx(0.02, rel=4 / (2 * count) ** 0.5)
        assert float(kernel.mean()) == pytest.approx(0, abs=4 * 0.02 / count**0.5)
    scale = started["main_9"]["scale"]
    assert float(scale.mean()) == pytest.approx(1, abs=4 * 0.02 / 512**0.5)
    assert float(scale.std()) == pytest.approx(0.02, rel=4 / 1024**0.5)
    assert not any(np.any(layer["bias"]) for layer in started.values() if "bias" in layer)


def test_a_norms_batch_is_that_of_all_devices():
    mesh = placement.make_mesh()
    x = np.random.default_rng(0).standard_normal((16, 3, 5, 4)).astype(np.float32)
    x += np.arange(16, dtype=np.float32)[:, None, None, None]  # every device's own mean is another
    variables = {"params": {"scale": np.float32([1, 2, 3, 4]), "bias": np.float32([4, 3, 2, 1])}}
    exact = x.astype(np.float64)
    mean, variance = exact.mean((0, 1, 2)), exact.var((0, 1, 2))
    want = (exact - mean) / np.sqrt(variance + 1e-5) * [1, 2, 3, 4] + [4, 3, 2, 1]
    spread = jax.device_put(x, NamedSharding(mesh, P("data")))
    by_jit = jax.jit(BatchNorm().apply)(variables, spread)
    by_map = jax.jit(placement.over_batch(BatchNorm(axis="data").apply, mesh, (False, True)))(variables, spread)
    assert len(by_jit.sharding.device_set) == 8
    np.testing.assert_allclose(by_jit, want, atol=1e-5)
    np.testing.assert_allclose(by_map, want, atol=1e-5)


def test_pictures_without_a_logit_are_refused():
    with pytest.raises(ValueError, match="at least 24 pixels a side; got 23 x 64"):
        jax.eval_shape(Discriminator().init, jax.random.key(0), jnp.zeros((1, 23, 64, 3)))
