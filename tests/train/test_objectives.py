"""Losses and their weights against closed forms, and the objectives' parts seen from outside."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from models_to_train import MODEL, small_params

from sdjax.schedule import NoiseSchedule
from sdjax.train import objectives
from sdjax.train.objectives import DiffusionObjective, LatentBatch


@pytest.mark.parametrize(("mean", "sigma"), [(0.0, 1.0), (0.7, 0.2), (-2.0, 1.5)])
def test_kl_divergence_is_the_integral_that_defines_it(mean, sigma):
    p, q = scipy.stats.norm(mean, sigma), scipy.stats.norm()
    expected, _ = scipy.integrate.quad(
        lambda x: p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), mean - 12 * sigma, mean + 12 * sigma
    )
    moments = jnp.array([mean, 2 * np.log(sigma)], jnp.float32).reshape(1, 1, 1, 2)
    assert float(objectives.kl_divergence(moments)[0, 0, 0, 0]) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_reconstruction_error_of_a_ramp():
    # off by 0.5 on the left half: half the pixels, and one of 7 columns of differences, where it ends
    image = jnp.zeros([2, 8, 8, 3])
    other = image.at[:, :, :4].add(0.5)
    pixels, edges = objectives.reconstruction_error(image, other, 0.3)
    assert float(pixels) == pytest.approx(0.25)
    assert float(edges) == pytest.approx(0.3 * 0.5 / 7)


def test_weights_in_terms_of_x0_are_clipped_signal_to_noise_ratios():
    snr = np.array([1e-7, 0.3, 1.0, 3.0, 5.0, 400.0])
    clipped = np.array([1.0, 1.0, 1.0, 3.0, 5.0, 5.0])
    # An error e in x0 is one of sqrt(SNR) e in epsilon and of sqrt(SNR + 1) e in v: Hang et al. 2023, section 3.4
    np.testing.assert_allclose(objectives.snr_weights(snr, 5.0, "x0"), clipped)
    np.testing.assert_allclose(objectives.snr_weights(snr, 5.0, "v") * (snr + 1), clipped)
    np.testing.assert_allclose(objectives.snr_weights(snr, 5.0, "epsilon") * snr, np.minimum(snr, 5.0))


def batch(count, seed=0):
    rng = np.random.default_rng(seed)
    moments = rng.normal(size=(count, 4, 4, 8)).astype(np.float32)
    return LatentBatch(moments, rng.integers(0, 500, (count, MODEL.text.max_length)))


def test_an_untrained_network_has_the_loss_of_predicting_zero():
    # Its last layer starts at 0, so the error is the mean square of v = sqrt(a) noise - sqrt(1 - a) x0, whose variance
    # is a + (1 - a) (mean^2 + exp(logvar)) s^2 for every value. The average over draws is compared with that.
    empty = np.zeros(MODEL.text.max_length, np.int32)
    data = batch(64)
    loss = jax.jit(objectives.diffusion_loss(MODEL, DiffusionObjective(dropout=0.0), empty))
    keys = jax.random.split(jax.random.key(0), 60)
    seen = np.array([float(loss(small_params(), data, key)[0]) for key in keys])
    a = NoiseSchedule(MODEL.schedule).alphas_cumprod
    mean, logvar = np.split(data.moments.astype(float), 2, axis=-1)
    power = (mean**2 + np.exp(logvar)).mean() * MODEL.vae.scale_factor**2
    expected = (objectives.snr_weights(a / (1 - a), 5.0, "v") * (a + (1 - a) * power)).mean()
    assert seen.mean() == pytest.approx(expected, abs=4 * seen.std() / 60**0.5)


def trained(params):
    """Returns the parameters with a last layer that lets the output depend on everything."""
    kernel = params["unet"]["conv_out"]["kernel"]
    params = jax.tree.map(lambda leaf: leaf, params)
    params["unet"]["conv_out"]["kernel"] = jax.random.normal(jax.random.key(9), kernel.shape)
    for path in ("down_blocks_0", "mid_block", "up_blocks_0"):
        assert path in params["unet"]
    return params


def test_dropout_replaces_captions_by_the_empty_one():
    rng = np.random.default_rng(1)
    empty = rng.integers(0, 500, MODEL.text.max_length)
    data, params, key = batch(4), trained(small_params()), jax.random.key(5)
    other = data._replace(ids=np.tile(empty, (4, 1)))

    def loss(dropout, data):
        return float(objectives.diffusion_loss(MODEL, DiffusionObjective(dropout=dropout), empty)(params, data, key)[0])

    assert loss(1.0, data) == loss(1.0, other) == loss(0.0, other)
    assert loss(0.0, data) != loss(0.0, other)


def test_offset_noise_moves_whole_channels(monkeypatch):
    seen = {}
    real = NoiseSchedule.add_noise

    def spy(self, x0, noise, timestep):
        seen["noise"] = noise
        return real(self, x0, noise, timestep)

    monkeypatch.setattr(NoiseSchedule, "add_noise", spy)
    data = batch(512)
    empty = np.zeros(MODEL.text.max_length, np.int32)
    objective = DiffusionObjective(offset_noise=0.5)
    objectives.diffusion_loss(MODEL, objective, empty)(small_params(), data, jax.random.key(0))
    means = np.asarray(seen["noise"]).mean((1, 2))
    # 16 values' mean has variance 1/16, the offset adds 0.25; 2048 of them know theirs to 3 % (one standard deviation)
    assert means.var() == pytest.approx(1 / 16 + 0.25, rel=0.1)


def test_autoencoder_loss_is_the_sum_of_its_parts():
    loss = objectives.autoencoder_loss(MODEL.vae, kl_weight=0.01, edge_weight=0.5)
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)
    total, parts = loss(small_params()["vae"], images, jax.random.key(0))
    assert float(total) == pytest.approx(float(parts["pixels"] + parts["edges"] + 0.01 * parts["kl"]), rel=1e-6)
    assert dataclasses.is_dataclass(MODEL.vae)
