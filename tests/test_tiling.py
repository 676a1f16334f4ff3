"""Decoding band by band: the numbers of decoding at once, whatever the bands, and the memory it takes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax import configs
from sdjax.config import VAEConfig
from sdjax.nn import AutoencoderKL
from sdjax.nn.layers.conv import conv2d
from sdjax.nn.layers.norm import GroupNorm, group_norm
from sdjax.pipeline import placement, tiling

import models

F4 = VAEConfig(channels=(32, 64, 64), num_res_blocks=1, scale_factor=0.08333)
F8 = VAEConfig(channels=(32, 32, 64, 64), num_res_blocks=1)


@functools.cache
def parameters(config: VAEConfig) -> dict:
    shapes = jax.eval_shape(lambda: AutoencoderKL(config).init(jax.random.key(0), jnp.zeros([1, 32, 32, 3])))["params"]
    return models.fill_tree(shapes)


@functools.cache
def at_once(config: VAEConfig, dtype=jnp.float32):
    return jax.jit(lambda params, z: AutoencoderKL(config, dtype).apply({"params": params}, z, method="decode"))


@functools.cache
def in_bands(config: VAEConfig, band: int, dtype=jnp.float32):
    return jax.jit(functools.partial(tiling.decode, config, dtype, band=band))


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(("config", "size"), [(F4, (24, 16)), pytest.param(F8, (10, 7), marks=pytest.mark.slow)])
def test_bands_give_the_picture_of_the_whole(config, size):
    """From one band to bands of one row. float32 sums in another order: 1e-6 of the values, some thirty layers deep."""
    params, latent = parameters(config), 0.1 * normal(0, 1, *size, 4)
    whole = at_once(config)(params, latent)
    assert whole.std() > 0.1
    for band in (2**14, 1):
        found = in_bands(config, band)(params, latent)
        np.testing.assert_allclose(found, whole, atol=2e-5 * np.abs(whole).max())


def test_encoding_in_bands_gives_the_moments_of_the_whole():
    """The encoder too, whose halved maps have one row of zeros at the bottom only."""
    params, image = parameters(F4), np.tanh(normal(0, 1, 48, 40, 3))
    whole = jax.jit(lambda x: AutoencoderKL(F4).apply({"params": params}, x, method="encode"))(image)
    assert whole.std() > 0.1
    for band in (2**14, 1):
        found = jax.jit(functools.partial(tiling.encode, F4, jnp.float32, band=band))(params, image)
        np.testing.assert_allclose(found, whole, atol=2e-5 * np.abs(whole).max())


@pytest.mark.parametrize("band", [1, 100, 2**20])
def test_banded_halving_is_the_encoders(band):
    x, kernel, bias = normal(0, 2, 12, 6, 3), normal(1, 3, 3, 3, 4), normal(2, 4)
    want = conv2d(x, kernel, bias, strides=(2, 2), padding=((0, 1), (0, 1)))
    np.testing.assert_allclose(tiling.halve(x, kernel, bias, band=band), want, atol=1e-5)
    with pytest.raises(ValueError, match="a map to halve has even sides; got 12 x 5"):
        tiling.halve(x[:, :, :5], kernel, bias)


def test_no_seam_shows_where_bands_meet():
    """The largest error in rows beside a seam is no larger than elsewhere; tiles decoded alone are far off."""
    params, latent = parameters(F4), 0.1 * normal(1, 1, 24, 16, 4)
    latent[:, :12] += 0.2  # halves of different brightness: statistics of their own would change them
    whole, banded = np.asarray(at_once(F4)(params, latent)), np.asarray(in_bands(F4, 2**14)(params, latent))
    halves = [at_once(F4)(params, half) for half in np.split(latent, 2, axis=1)]
    naive = np.concatenate(halves, axis=1)
    error = np.abs(banded - whole).max((0, 2, 3))  # one a row
    assert error.max() < 2e-5 * np.abs(whole).max()
    assert np.abs(naive - whole).max() > 1000 * error.max()


@pytest.mark.slow
def test_half_precision_differs_from_the_whole_by_its_own_rounding():
    params, latent = parameters(F4), 0.1 * normal(2, 1, 24, 16, 4)
    exact, whole = (at_once(F4, dtype)(params, latent) for dtype in (jnp.float32, jnp.bfloat16))
    banded = in_bands(F4, 2**14, jnp.bfloat16)(params, latent)
    assert banded.dtype == jnp.float32
    assert np.abs(banded - exact).max() < 2 * np.abs(whole - exact).max()


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("band", [1, 100, 2**20])
def test_banded_convolution_is_the_convolution(double, band):
    x, kernel, bias, onto = normal(0, 2, 12, 5, 3), normal(1, 3, 3, 3, 4), normal(2, 4), normal(3, 2, 12, 5, 4)
    prepared = np.cos(x)  # cos(0) is not 0: beyond the edge there are zeros, not prepared zeros
    if double:
        prepared, onto = prepared.repeat(2, 1).repeat(2, 2), onto.repeat(2, 1).repeat(2, 2)
    want = conv2d(prepared, kernel, bias)
    found = tiling.convolve(x, kernel, bias, band=band, prepare=jnp.cos, double=double)
    np.testing.assert_allclose(found, want, atol=1e-5)
    found = tiling.convolve(x, kernel, bias, band=band, prepare=jnp.cos, double=double, onto=jnp.asarray(onto))
    np.testing.assert_allclose(found, want + onto, atol=1e-5)


@pytest.mark.parametrize("offset", [0, 1000])
def test_banded_statistics_are_the_maps(offset):
    x, params = normal(0, 2, 12, 5, 8) + offset, {"scale": normal(1, 8), "bias": normal(2, 8)}
    x[:, :6] *= 3
    exact = x.astype(np.float64).reshape(2, 60, 4, 2)
    spread = (exact - exact.mean((1, 3), keepdims=True)) / np.sqrt(exact.var((1, 3), keepdims=True) + 1e-6)
    want = jax.nn.silu(spread.reshape(x.shape) * params["scale"] + params["bias"])
    for band in (1, 100, 2**20):
        found = tiling.norm_of(jnp.asarray(x), GroupNorm(4, 1e-6), params, band)(jnp.asarray(x))
        # x itself has 1e-7 of its size as rounding error, over a standard deviation of 1 to 3
        np.testing.assert_allclose(found, want, atol=1e-5 + 1e-6 * offset)
    whole = jax.nn.silu(group_norm(jnp.asarray(x), **params, groups=4, epsilon=1e-6))
    np.testing.assert_allclose(found, whole, atol=1e-5 + 1e-6 * offset)


def test_a_pipeline_decodes_large_pictures_in_bands_and_others_at_once(monkeypatch):
    seen, decode = [], tiling.decode
    monkeypatch.setattr(tiling, "decode", lambda *args, **more: seen.append(args[-1].shape) or decode(*args, **more))
    monkeypatch.setattr(tiling, "LARGE", 64 * 64)
    pipe, mesh = models.pipeline(), placement.make_mesh(jax.devices()[:1])
    for width in (8, 9):  # latents of 64 x 64 and 64 x 72 pixels
        latent = normal(0, 1, 8, width, 4)
        assert pipe.decode(latent, mesh=mesh).shape == (1, 64, 8 * width, 3)
    assert seen == [(1, 8, 9, 4)]


def decoder_bytes(config: VAEConfig, side: int, decode) -> int:
    """Returns the bytes that XLA plans for decoding a latent of side x side, beside parameters, nothing allocated."""
    vae = AutoencoderKL(config)
    shapes = jax.eval_shape(lambda: vae.init(jax.random.key(0), jnp.zeros([1, 32, 32, 3])))["params"]
    latent = jax.ShapeDtypeStruct((1, side, side, 4), jnp.float32)
    plan = jax.jit(decode).lower(shapes, latent).compile().memory_analysis()
    return plan.temp_size_in_bytes + plan.output_size_in_bytes


@pytest.mark.slow
@pytest.mark.parametrize("name", ["x4_upscaler", pytest.param("sd1", marks=pytest.mark.slow)])
def test_a_picture_of_2048_pixels_is_decoded_within_nine_gibibytes(name):
    """At full size, in float32. The largest map is 4 GiB; its shortcut and what lies between take 2 each."""
    config = configs.get(name).vae
    planned = decoder_bytes(config, 2048 // config.factor, functools.partial(tiling.decode, config, jnp.float32))
    assert planned < 9 * 2**30
