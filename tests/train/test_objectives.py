"""Losses and their weights against closed forms, and the objectives' parts seen from outside."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from models_to_train import MODEL

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


class Network:
    """Stands for UNet and text encoder: what they put out is given, and what they were asked is kept."""

    def __init__(self, monkeypatch, output):
        self.output, self.calls = output, []
        monkeypatch.setattr(objectives, "UNet", lambda config: self)
        monkeypatch.setattr(objectives, "TextEncoder", lambda config: self)

    def apply(self, variables, *inputs):
        if len(inputs) == 1:
            return inputs[0]  # a text's context is its tokens
        self.calls.append([np.asarray(value) for value in inputs])
        return self.output(*inputs)


def loss_of(data, key=0, empty=None, **settings):
    empty = np.zeros(MODEL.text.max_length, np.int32) if empty is None else empty
    loss = objectives.diffusion_loss(MODEL, DiffusionObjective(**settings), empty)
    return float(loss({"unet": {}, "text": {}}, data, jax.random.key(key))[0])


def test_predicting_nothing_costs_the_weighted_variance_of_v(monkeypatch):
    # v = sqrt(a) noise - sqrt(1 - a) x0 has mean square a + (1 - a) s^2 (mean^2 + exp(logvar)), s the scale factor
    Network(monkeypatch, lambda x, t, context: jnp.zeros_like(x))
    data = batch(2000)
    seen = np.array([loss_of(data, key) for key in range(10)])
    a = NoiseSchedule(MODEL.schedule).alphas_cumprod
    mean, logvar = np.split(data.moments.astype(float), 2, axis=-1)
    power = (mean**2 + np.exp(logvar)).mean() * MODEL.vae.scale_factor**2
    expected = (np.clip(a / (1 - a), 1, 5) * (1 - a) * (a + (1 - a) * power)).mean()  # 1 / (SNR + 1) = 1 - a
    assert seen.mean() == pytest.approx(expected, abs=4 * seen.std() / 10**0.5)


def test_what_the_network_sees_is_latent_and_noise_at_the_timestep_that_it_is_told(monkeypatch):
    network = Network(monkeypatch, lambda x, t, context: x)
    moments = np.zeros((4000, 4, 4, 8), np.float32)
    moments[..., :4], moments[..., 4:] = 2.0, -30.0  # a latent known exactly
    loss_of(LatentBatch(moments, batch(4000).ids))
    ((x, t, _),) = network.calls
    a = NoiseSchedule(MODEL.schedule).alphas_cumprod[t.astype(int)]
    noise = (x - (2.0 * MODEL.vae.scale_factor * a**0.5)[:, None, None, None]) / ((1 - a) ** 0.5)[:, None, None, None]
    # 256,000 unit normal numbers; at small t a float32 x holds noise to 1e-6 / 0.03
    assert abs(noise.mean()) < 4 / 256_000**0.5
    assert noise.var() == pytest.approx(1, abs=4 * (2 / 256_000) ** 0.5)
    assert 0 <= t.min() < 10 < 990 < t.max() <= 999


def test_dropout_replaces_captions_by_the_empty_one(monkeypatch):
    network = Network(monkeypatch, lambda x, t, context: x)
    empty = np.full(MODEL.text.max_length, 599)
    data = batch(5000)
    loss_of(data, empty=empty, dropout=0.1)
    ((_, _, ids),) = network.calls
    dropped = (ids == empty).all(1)
    assert dropped.mean() == pytest.approx(0.1, abs=4 * (0.09 / 5000) ** 0.5)
    np.testing.assert_array_equal(ids[~dropped], data.ids[~dropped])


def test_offset_noise_moves_whole_channels(monkeypatch):
    network = Network(monkeypatch, lambda x, t, context: x)
    moments = np.zeros((4000, 4, 4, 8), np.float32)
    moments[..., 4:] = -30.0
    loss_of(LatentBatch(moments, batch(4000).ids), offset_noise=0.5)
    ((x, t, _),) = network.calls
    a = NoiseSchedule(MODEL.schedule).alphas_cumprod[t.astype(int)]
    means = x.mean((1, 2)) / ((1 - a) ** 0.5)[:, None]
    # the mean of 16 has variance 1/16, the offset adds 0.25; 16,000 of them know theirs to 1.1 %
    assert means.var() == pytest.approx(1 / 16 + 0.25, rel=0.045)


def test_autoencoder_loss_is_the_sum_of_its_parts(monkeypatch):
    class Autoencoder:
        """Takes the first channel for mean and log variance, and a latent for a grey picture."""

        def __init__(self, config):
            pass

        def apply(self, variables, x, method):
            first = x[..., :1]
            return jnp.repeat(first, 8, -1) if method == "encode" else jnp.repeat(first, 3, -1)

    monkeypatch.setattr(objectives, "AutoencoderKL", Autoencoder)
    loss = objectives.autoencoder_loss(MODEL.vae, kl_weight=0.01, edge_weight=0.5)
    images = np.full((200, 16, 16, 3), 255, np.uint8)  # 1, so that moments are N(1, e)
    total, parts = loss({}, images, jax.random.key(0))
    # decoded from s (1 + e^0.5 noise): |s - 1 + s e^0.5 noise| in the mean, and KL = (1 + e - 1 - 1) / 2
    s = MODEL.vae.scale_factor
    folded = scipy.stats.foldnorm(abs(s - 1) / (s * np.e**0.5), scale=s * np.e**0.5)
    assert float(parts["pixels"]) == pytest.approx(folded.mean(), abs=4 * folded.std() / (200 * 256) ** 0.5)
    assert float(parts["kl"]) == pytest.approx((np.e - 1) / 2, rel=1e-5)
    assert float(total) == pytest.approx(float(parts["pixels"] + parts["edges"] + 0.01 * parts["kl"]), rel=1e-6)
