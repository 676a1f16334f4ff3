"""Losses and their weights against closed forms, and the objectives' parts seen from outside."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models_to_train import MODEL

from sdjax.schedule import NoiseSchedule
from sdjax.train.objectives import diffusion, inputs, weighting
from sdjax.train.objectives.diffusion import Denoising, DiffusionObjective, diffusion_loss
from sdjax.train.objectives.draws import keys_of


def test_weights_in_terms_of_x0_are_clipped_signal_to_noise_ratios():
    snr = np.array([1e-7, 0.3, 1.0, 3.0, 5.0, 400.0])
    clipped = np.array([1.0, 1.0, 1.0, 3.0, 5.0, 5.0])
    # An error e in x0 is one of sqrt(SNR) e in epsilon and of sqrt(SNR + 1) e in v: Hang et al. 2023, section 3.4
    np.testing.assert_allclose(weighting.snr_weights(snr, 5.0, "x0", floor=1.0), clipped)
    np.testing.assert_allclose(weighting.snr_weights(snr, 5.0, "v", floor=1.0) * (snr + 1), clipped)
    np.testing.assert_allclose(weighting.snr_weights(snr, 5.0, "epsilon") * snr, np.minimum(snr, 5.0))


def batch(count, seed=0):
    rng = np.random.default_rng(seed)
    moments = rng.normal(size=(count, 4, 4, 8)).astype(np.float32)
    return {"moments": moments, "ids": rng.integers(0, 500, (count, MODEL.text.max_length))}


class Network:
    """Stands for UNet and text encoder: what they put out is given, and what they were asked is kept."""

    def __init__(self, monkeypatch, output):
        self.output, self.calls = output, []
        monkeypatch.setattr(diffusion, "UNet", lambda config, dtype, remat: self)
        monkeypatch.setattr(inputs, "TextEncoder", lambda config, dtype: self)

    def bind(self, variables):
        return self

    def __call__(self, *inputs, residuals=None):
        assert residuals is None
        if len(inputs) == 1:
            return inputs[0][..., None].astype(jnp.float32)  # a text's context is its tokens
        *seen, label = inputs
        assert label is None
        self.calls.append([np.asarray(value) for value in seen])
        return self.output(*seen)


def loss_of(data, key=0, empty=None, **settings):
    empty = np.zeros(MODEL.text.max_length, np.int32) if empty is None else empty
    loss = diffusion_loss(Denoising(MODEL, DiffusionObjective(**settings), empty))
    keys = keys_of(jax.random.key(key), 0, jnp.arange(len(data["ids"])))
    return float(loss({"unet": {}, "text": {}}, None, data, keys, 0)[0])


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
    ((_, _, context),) = network.calls
    ids = context[..., 0]
    dropped = (ids == empty).all(1)
    assert dropped.mean() == pytest.approx(0.1, abs=4 * (0.09 / 5000) ** 0.5)
    np.testing.assert_array_equal(ids[~dropped], data["ids"][~dropped])


def test_a_masked_loss_counts_what_is_white_and_the_rest_as_little_as_asked(monkeypatch):
    # The network is wrong on the left half of the latent alone
    left = (jnp.arange(4) < 2)[None, None, :, None]
    data = batch(64) | {"mask": np.repeat(np.arange(32) < 16, 32).reshape(32, 32).T[None].repeat(64, 0) * np.uint8(255)}
    data["moments"] = np.zeros_like(data["moments"]) - np.repeat([0.0, 30.0], 4)  # v is sqrt(a) noise

    def losses(mask, **settings):
        def network(x, t, context):
            return jnp.where(left, x + 7.0, x)

        Network(monkeypatch, network)
        return loss_of(data | {"mask": mask}, masked=True, **settings)

    white, black = data["mask"], 255 - data["mask"]
    inside, outside = losses(white), losses(black)
    assert inside > 40 > 3 > outside  # of a network that is wrong by 7 in what is white
    weighed = losses(white, unmasked=0.5)  # half as much for the other half of the places
    assert weighed == pytest.approx((inside + 0.5 * outside) / 1.5, rel=1e-4)


def test_timesteps_are_drawn_from_the_range_and_an_example_counts_as_its_weight_says(monkeypatch):
    network = Network(monkeypatch, lambda x, t, context: jnp.zeros_like(x))
    data = batch(2000)
    whole = loss_of(data, timesteps=(200, 300))
    ((_, t, _),) = network.calls
    assert 200 <= t.min() < 205 < 295 < t.max() <= 299
    assert loss_of(data | {"weight": np.full(2000, 0.5, np.float32)}, timesteps=(200, 300)) == pytest.approx(whole / 2)


def test_perturbation_is_noise_that_the_network_is_not_asked_for(monkeypatch):
    network = Network(monkeypatch, lambda x, t, context: x)
    data = batch(4000)
    data["moments"] = np.zeros_like(data["moments"]) - np.repeat([0.0, 30.0], 4)
    loss_of(data)
    loss_of(data, perturbation=0.3)
    (plain, t, _), (perturbed, _, _) = network.calls
    more = (perturbed - plain) / np.sqrt(1 - NoiseSchedule(MODEL.schedule).alphas_cumprod[t.astype(int)])[
        :, None, None, None
    ]
    assert more.std() == pytest.approx(0.3, rel=0.02)
    assert abs(np.corrcoef(more.ravel(), plain.ravel())[0, 1]) < 0.02


def test_l1_and_huber_are_those_of_the_error(monkeypatch):
    Network(monkeypatch, lambda x, t, context: jnp.zeros_like(x))
    data = batch(3000)
    data["moments"] = np.zeros_like(data["moments"]) - np.repeat([0.0, 30.0], 4)
    seen = {loss: loss_of(data, loss=loss, timesteps=(0, 1), huber_delta=0.5) for loss in ("l2", "l1", "huber")}
    noise = np.random.default_rng(0).normal(size=10**6)  # at the first timestep v is as good as noise
    size = np.abs(noise)
    expected = {
        "l2": 1.0, "l1": (2 / np.pi) ** 0.5,
        "huber": np.where(size <= 0.5, 0.5 * size**2, 0.5 * (size - 0.25)).mean(),
    }  # fmt: skip
    factor = seen["huber"] / expected["huber"]  # the reference's own scale of it
    assert seen["l2"] == pytest.approx(expected["l2"], rel=0.02)
    assert seen["l1"] == pytest.approx(expected["l1"], rel=0.02)
    assert min(abs(factor - 1), abs(factor - 2), abs(factor - 4)) < 0.05


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
