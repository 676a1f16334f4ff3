"""Seamless tiling: what wraps around and what does not; rolling the input rolls the output."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.adapters import Seamless, patched
from sdjax.config import UNetConfig, VAEConfig
from sdjax.diffusion.conditioning import Conditioning
from sdjax.diffusion.network import UNetNetwork
from sdjax.nn import AutoencoderKL, UNet
from sdjax.nn.layers import conv
from sdjax.nn.layers.conv import Conv
from sdjax.pipeline import tiling
from sdjax.pipeline.programs import VAEProgram, resize

import models

TWO_LEVELS = UNetConfig(channels=(32, 32), heads=(2, 2), mid_heads=2, transformer_depth=(1, 1), context_dim=16,
                        self_attention=(True, True), num_res_blocks=1)  # fmt: skip
VAE = VAEConfig(channels=(32, 32), num_res_blocks=1)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@functools.cache
def vae_params() -> dict:
    shapes = jax.eval_shape(AutoencoderKL(VAE).init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
    return models.fill_tree(shapes)


@pytest.mark.few(4)
@pytest.mark.parametrize("method", ["winograd", "columns", "xla"])
@pytest.mark.parametrize(("axes", "modes"), [("x", ("constant", "wrap")), ("y", ("wrap", "constant")),
                                             ("xy", ("wrap", "wrap"))])  # fmt: skip
def test_every_way_of_convolution_wraps_around(monkeypatch, method, axes, modes):
    monkeypatch.setattr(conv, "method_on_cpu", lambda *args: method)
    x, layer = normal(0, 2, 6, 5, 4), Conv(3)
    params = {"params": {"kernel": normal(1, 3, 3, 4, 3), "bias": normal(2, 3)}}
    padded = x
    for axis, mode in zip((1, 2), modes):
        padded = np.pad(padded, [(1, 1) if i == axis else (0, 0) for i in range(4)], mode=mode)
    want = conv.convolution(padded, params["params"]["kernel"], strides=(1, 1), padding=((0, 0), (0, 0)))
    with patched([Seamless(axes)]):
        found = layer.apply(params, x)
    np.testing.assert_allclose(found, want + params["params"]["bias"], atol=2e-5)  # sums of 36 products


@pytest.mark.parametrize("side", [6, 7])
def test_a_convolution_with_a_stride_wraps_only_if_both_sides_are_padded(side):
    x, kernel, bias = normal(0, 1, side, side, 2), normal(1, 3, 3, 2, 2), np.zeros(2, np.float32)
    params = {"params": {"kernel": kernel, "bias": bias}}

    def run(padding):
        with patched([Seamless("xy")]):
            return Conv(2, strides=(2, 2), padding=padding).apply(params, x)

    wrapped = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="wrap")
    want = conv.convolution(wrapped, kernel, strides=(2, 2), padding=((0, 0), (0, 0)))
    np.testing.assert_allclose(run(((1, 1), (1, 1))), want, atol=1e-5)
    one_sided = ((0, 1), (0, 1))  # the encoder's
    want = conv.convolution(x, kernel, strides=(2, 2), padding=one_sided)
    np.testing.assert_array_equal(run(one_sided), want)


@pytest.mark.slow
def test_rolling_a_latent_rolls_what_the_unet_predicts():
    inputs = normal(0, 1, 8, 8, 4), np.float32([500]), normal(1, 1, 3, 16)
    shapes = jax.eval_shape(UNet(TWO_LEVELS).init, jax.random.key(0), *inputs)["params"]
    params, (x, t, context) = models.fill_tree(shapes), inputs

    @functools.partial(jax.jit, static_argnums=0)
    def run(axes, x):
        return UNetNetwork(TWO_LEVELS, "float32", seamless=axes)(params, x, t, Conditioning(context), ())[0]

    rolled = np.roll(x, (2, 4), (1, 2))  # by whole entries of the coarsest level
    found, want = run("xy", rolled), np.roll(run("xy", x), (2, 4), (1, 2))
    np.testing.assert_allclose(found, want, atol=1e-4 * np.abs(want).max())  # sums in another order
    assert np.abs(run("", rolled) - np.roll(run("", x), (2, 4), (1, 2))).max() > 0.01 * np.abs(want).max()


@pytest.mark.few(1)
@pytest.mark.parametrize("axes", ["x", "xy"])
def test_rolling_a_latent_rolls_the_picture_also_in_bands(axes):
    latent, shift = 0.1 * normal(0, 1, 6, 8, 4), (2 if axes == "xy" else 0, 3)
    whole = jax.jit(lambda z: VAEProgram(VAE, "float32", axes).run(vae_params(), z, "decode"))
    found = whole(np.roll(latent, shift, (1, 2)))
    want = np.roll(whole(latent), [2 * by for by in shift], (1, 2))
    np.testing.assert_allclose(found, want, atol=2e-5 * np.abs(want).max())
    banded = jax.jit(functools.partial(tiling.decode, VAE, jnp.float32, band=400, seamless=axes))
    np.testing.assert_allclose(banded(vae_params(), latent), whole(latent), atol=2e-5 * np.abs(want).max())


def test_enlarging_a_seamless_latent_keeps_it_seamless():
    latent = normal(0, 1, 6, 6, 4)
    for method in "bilinear", "bicubic", "sharp bicubic", "nearest", "floor nearest":
        large = resize((12, 12, method, "x"), latent)
        rolled = resize((12, 12, method, "x"), np.roll(latent, 1, 2))
        np.testing.assert_allclose(rolled, np.roll(large, 2, 2), atol=1e-5)


def test_other_axes_are_refused():
    with pytest.raises(ValueError, match="seamless is one of x, y, xy; got 'z'"):
        Seamless("z")


def test_layers_that_are_no_convolutions_are_left_alone():
    x = normal(0, 2, 4)
    with patched([Seamless("xy")]):
        np.testing.assert_array_equal(nn.Dense(4).init_with_output(jax.random.key(0), x)[0].shape, x.shape)
