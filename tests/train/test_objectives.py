"""Losses and their weights against closed forms, and the objectives' parts seen from outside."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models_to_train import MODEL

from sdjax.schedule import NoiseSchedule
from sdjax.train import objectives
from sdjax.train.draws import keys_of
from sdjax.train.objectives import Denoising, DiffusionObjective, diffusion_loss


def test_weights_in_terms_of_x0_are_clipped_signal_to_noise_ratios():
    snr = np.array([1e-7, 0.3, 1.0, 3.0, 5.0, 400.0])
    clipped = np.array([1.0, 1.0, 1.0, 3.0, 5.0, 5.0])
    # An error e in x0 is one of sqrt(SNR) e in epsilon and of sqrt(SNR + 1) e in v: Hang et al. 2023, section 3.4
    np.testing.assert_allclose(objectives.snr_weights(snr, 5.0, "x0", floor=1.0), clipped)
    np.testing.assert_allclose(objectives.snr_weights(snr, 5.0, "v", floor=1.0) * (snr + 1), clipped)
    np.testing.assert_allclose(objectives.snr_weights(snr, 5.0, "epsilon") * snr, np.minimum(snr, 5.0))


def batch(count, seed=0):
    rng = np.random.default_rng(seed)
    moments = rng.normal(size=(count, 4, 4, 8)).astype(np.float32)
    return {"moments": moments, "ids": rng.integers(0, 500, (count, MODEL.text.max_length))}


class Network:
    """Stands for UNet and text encoder: what they put out is given, and what they were asked is kept."""

    def __init__(self, monkeypatch, output):
        self.output, self.calls = output, []
        monkeypatch.setattr(objectives, "UNet", lambda config, dtype, remat: self)
        monkeypatch.setattr(objectives, "TextEncoder", lambda config, dtype: self)

    def apply(self, variables, *inputs):
        if len(inputs) == 1:
            return inputs[0]  # a text's context is its tokens
        *seen, label = inputs
        assert label is None
        self.calls.append([np.asarray(value) for value in seen])
        return self.output(*seen)


def loss_of(data, key=0, empty=None, **settings):
    empty = np.zeros(MODEL.text.max_length, np.int32) if empty is None else empty
    loss = diffusion_loss(Denoising(MODEL, DiffusionObjective(**settings), empty))
    keys = keys_of(jax.random.key(key), 0, jnp.arange(len(data["ids"])))
    return float(loss({"unet": {}, "text": {}}, {}, data, keys, 0)[0])


def test_predicting_nothing_costs_the_weighted_variance_of_v(monkeypatch):
    # v = sqrt(a) noise - sqrt(1 - a) x0 has mean square a + (1 - a) s^2 (mean^2 + exp(logvar)), s the scale factor
    Network(monkeypatch, lambda x, t, context: jnp.zeros_like(x))
    data = batch(2000)
    seen = np.array([loss_of(data, key, gamma=5.0, floor=1.0) for key in range(10)])
    a = NoiseSchedule(MODEL.schedule).alphas_cumprod
    mean, logvar = np.split(data["moments"].astype(float), 2, axis=-1)
    power = (mean**2 + np.exp(logvar)).mean() * MODEL.vae.scale_factor**2
    expected = (np.clip(a / (1 - a), 1, 5) * (1 - a) * (a + (1 - a) * power)).mean()  # 1 / (SNR + 1) = 1 - a
    assert seen.mean() == pytest.approx(expected, abs=4 * seen.std() / 10**0.5)


def test_what_the_network_sees_is_latent_and_noise_at_the_timestep_that_it_is_told(monkeypatch):
    network = Network(monkeypatch, lambda x, t, context: x)
    moments = np.zeros((4000, 4, 4, 8), np.float32)
    moments[..., :4], moments[..., 4:] = 2.0, -30.0  # a latent known exactly
    loss_of({"moments": moments, "ids": batch(4000)["ids"]})
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
    np.testing.assert_array_equal(ids[~dropped], data["ids"][~dropped])


def test_offset_noise_moves_whole_channels(monkeypatch):
    network = Network(monkeypatch, lambda x, t, context: x)
    moments = np.zeros((4000, 4, 4, 8), np.float32)
    moments[..., 4:] = -30.0
    loss_of({"moments": moments, "ids": batch(4000)["ids"]}, offset_noise=0.5)
    ((x, t, _),) = network.calls
    a = NoiseSchedule(MODEL.schedule).alphas_cumprod[t.astype(int)]
    means = x.mean((1, 2)) / ((1 - a) ** 0.5)[:, None]
    # the mean of 16 has variance 1/16, the offset adds 0.25; 16,000 of them know theirs to 1.1 %
    assert means.var() == pytest.approx(1 / 16 + 0.25, rel=0.045)
