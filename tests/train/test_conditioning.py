"""The networks' conditioning in training equals that in sampling, and agrees with formulas."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models_to_train import MODEL

from sdjax.config import DepthConfig, ScheduleConfig, VisionConfig
from sdjax.nn import VisionEncoder
from sdjax.pictures import preprocess
from sdjax.schedule import NoiseSchedule
from sdjax.tasks.depth_to_image import prepare_depth
from sdjax.train.objectives import conditioning, draws
from sdjax.train.objectives.diffusion import DiffusionObjective
from sdjax.train.objectives.holes import random_holes


def keys(count, seed=0):
    return draws.keys_of(jax.random.key(seed), jnp.int32(0), jnp.arange(count))


def test_draws_hang_on_an_examples_place_and_not_on_its_batch():
    whole = draws.normal(draws.keys_of(jax.random.key(1), jnp.int32(7), jnp.arange(8)), draws.NOISE, (3, 2))
    part = draws.normal(draws.keys_of(jax.random.key(1), jnp.int32(7), 4 + jnp.arange(4)), draws.NOISE, (3, 2))
    np.testing.assert_array_equal(whole[4:], part)
    other = draws.normal(draws.keys_of(jax.random.key(1), jnp.int32(8), jnp.arange(8)), draws.NOISE, (3, 2))
    assert not np.isin(whole, other).any()


def test_holes_are_as_often_whole_as_asked_and_else_of_all_sizes():
    holes = np.asarray(jax.jit(random_holes, static_argnums=(1, 2, 3))(keys(2000), 32, 48, 0.25))
    assert holes.shape == (2000, 32, 48)
    share = holes.mean((1, 2))
    assert (share == 1).mean() == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 2000) ** 0.5 + 0.01)
    assert share.min() > 0  # at least one shape
    partial = share[share < 1]
    assert (partial < 0.15).mean() > 0.05
    assert (partial > 0.6).mean() > 0.05
    # anywhere: every pixel is hidden in some and seen in some
    hidden = holes[share < 1].mean(0)
    assert 0.05 < hidden.min() < hidden.max() < 0.9


class Encoder:
    """Stands for the autoencoder: the mean of a latent's pixels, known exactly."""

    def __init__(self, config, dtype):
        self.factor = config.factor

    def bind(self, variables):
        return self

    def encode(self, image):
        b, h, w, _ = image.shape
        small = image.reshape(b, h // self.factor, self.factor, w // self.factor, self.factor, 3).mean((2, 4))
        mean = jnp.concatenate([small, small[..., :1]], -1)
        return jnp.concatenate([mean, jnp.full_like(mean, -30.0)], -1)


def test_an_inpainting_model_sees_mask_and_masked_picture(monkeypatch):
    monkeypatch.setattr(conditioning, "autoencoder", Encoder)
    image = np.random.default_rng(0).uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)
    mask = np.zeros((2, 32, 32), np.uint8)
    mask[0, :, 16:] = 255
    objective = DiffusionObjective(holes="given")
    told = conditioning.inpainting(MODEL, {"vae": {}}, {"image": image, "mask": mask}, keys(2), objective, jnp.float32)
    seen_mask, latent = np.asarray(told.concat[..., :1]), np.asarray(told.concat[..., 1:])
    np.testing.assert_array_equal(seen_mask[0, :, :, 0], np.repeat([[0, 0, 1, 1]], 4, 0))
    assert not seen_mask[1].any()
    assert np.abs(latent[0, :, 2:]).max() < 1e-5  # mid-grey is 0
    whole = Encoder(MODEL.vae, None).encode(image)[..., :4] * MODEL.vae.scale_factor
    np.testing.assert_allclose(latent[1], whole[1], atol=1e-5)
    assert told.label is None


def test_an_upscaler_sees_the_small_picture_with_noise_of_its_level():
    config = dataclasses.replace(
        MODEL, schedule=ScheduleConfig(kind="scaled_linear", beta_start=1e-4, beta_end=0.02, prediction="v")
    )
    image = np.full((4000, 16, 16, 3), 0.5, np.float32)
    told = conditioning.upscaling(config, {}, {"image": image}, keys(4000), DiffusionObjective(), jnp.float32)
    level, low = np.asarray(told.label), np.asarray(told.concat)
    assert low.shape == (4000, 2, 2, 3)  # as large as the latent
    assert 0 <= level.min() < 5 < 345 < level.max() < 350
    a = NoiseSchedule(config.schedule).alphas_cumprod[level]
    noise = (low - 0.5 * np.sqrt(a)[:, None, None, None]) / np.sqrt(1 - a)[:, None, None, None]
    assert noise.std() == pytest.approx(1, rel=0.02)
    assert abs(noise.mean()) < 0.02


@pytest.mark.slow
def test_unclip_sees_the_noised_embedding_of_the_picture():
    d = 16
    vision = VisionConfig(image_size=28, patch_size=14, width=32, layers=1, heads=2, projection=d)
    unet = dataclasses.replace(MODEL.unet, label_dim=2 * d)
    config = dataclasses.replace(MODEL, unet=unet, vision=vision, noise_stats=d)
    params = jax.jit(VisionEncoder(vision).init)(jax.random.key(1), jnp.zeros((1, 28, 28, 3)))["params"]
    rng = np.random.default_rng(0)
    mean, std = rng.normal(size=(1, d)).astype(np.float32), rng.uniform(0.5, 2, (1, d)).astype(np.float32)
    parts = {"vision": params, "noise_stats": {"mean": mean, "std": std}}
    picture = rng.integers(0, 256, (40, 56, 3)).astype(np.uint8)
    image = np.repeat(picture[None].astype(np.float32) / 127.5 - 1, 2000, 0)
    told = conditioning.unclip(
        config, parts, {"image": image}, keys(2000), DiffusionObjective(label_dropout=0.25), jnp.float32
    )
    assert told.concat is None
    label = np.asarray(told.label)
    dropped = (label == 0).all(1)
    assert dropped.mean() == pytest.approx(0.25, abs=4 * (0.1875 / 2000) ** 0.5)
    # The embedding less mean over deviation, with noise of the level, and back; behind it the level's sinusoid
    seen = (preprocess.ldm(picture, 28) - preprocess.MEAN) / preprocess.STD
    embedding = VisionEncoder(vision).apply({"params": params}, seen[None].astype(np.float32))
    frequencies = np.exp(-np.log(10000.0) * np.arange(d // 2) / (d // 2))
    cosines, sines = np.split(label[~dropped, d:].astype(np.float64), 2, axis=1)
    levels = np.rint(np.arctan2(sines[:, -1], cosines[:, -1]) / frequencies[-1]).astype(int)
    np.testing.assert_allclose(cosines, np.cos(levels[:, None] * frequencies), atol=1e-3)
    assert 0 <= levels.min() < 20 < 979 < levels.max() < 1000
    a = NoiseSchedule(ScheduleConfig(kind="squaredcos")).alphas_cumprod[levels][:, None]
    noise = ((label[~dropped, :d] - mean) / std - np.sqrt(a) * (np.asarray(embedding) - mean) / std) / np.sqrt(1 - a)
    assert noise.std() == pytest.approx(1, rel=0.02)
    assert abs(noise.mean()) < 0.03


def test_depth_is_what_sampling_sees_but_for_the_guard_of_flat_maps(monkeypatch):
    rng = np.random.default_rng(0)
    maps = rng.uniform(0, 20, (2, 64, 64, 1)).astype(np.float32)

    class Estimator:
        def __init__(self, config, dtype):
            pass

        def bind(self, variables):
            return lambda image: jnp.asarray(maps)

    monkeypatch.setattr(conditioning, "DepthEstimator", Estimator)
    config = dataclasses.replace(MODEL, depth=DepthConfig())
    image = np.zeros((2, 64, 64, 3), np.float32)
    told = conditioning.depth(config, {"depth": {}}, {"image": image}, keys(2), DiffusionObjective(), jnp.float32)
    np.testing.assert_allclose(told.concat, prepare_depth(maps, (8, 8)), atol=5e-4)  # + 0.001 below


def test_the_matrices_of_preprocessing_do_what_preprocessing_does():
    picture = np.random.default_rng(0).integers(0, 256, (40, 56, 3)).astype(np.uint8)
    rows, columns = preprocess.ldm_matrix(40, 56, 28)
    x = picture.astype(np.float32) / 127.5 - 1
    np.testing.assert_allclose(
        (np.einsum("ih,hwc,jw->ijc", rows, x, columns) + 1) / 2, preprocess.ldm(picture, 28), atol=1e-5
    )


def test_a_label_is_dropped_as_often_as_asked_and_whole():
    values = jnp.ones((4000, 6))
    kept = np.asarray(draws.replaced(keys(4000), draws.LABEL, 0.25, values, 0.0))
    assert set(np.unique(kept.mean(1))) == {0.0, 1.0}
    assert (kept[:, 0] == 0).mean() == pytest.approx(0.25, abs=4 * (0.1875 / 4000) ** 0.5)
