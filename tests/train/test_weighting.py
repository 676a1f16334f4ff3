"""The weights of timesteps and the kinds of errors, against their formulas."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from models_to_train import MODEL

from sdjax.config import ConfigError
from sdjax.schedule import NoiseSchedule
from sdjax.train.objectives.diffusion import DiffusionObjective
from sdjax.train.objectives.objective import RunFacts
from sdjax.train.objectives.weighting import ERRORS, huber_deltas, timestep_weights

SCHEDULE = NoiseSchedule(MODEL.schedule)
SNR = SCHEDULE.alphas_cumprod / (1 - SCHEDULE.alphas_cumprod)
CLIPPED = np.minimum(SNR, 1000.0)


@pytest.mark.parametrize(
    ("settings", "prediction", "expected"),
    [
        ({}, "epsilon", np.ones_like(SNR)),
        ({"gamma": 5.0}, "v", np.minimum(SNR, 5.0) / (SNR + 1)),
        ({"debiased": True}, "epsilon", CLIPPED**-0.5),
        ({"debiased": True}, "v", 1 / (CLIPPED + 1)),
        ({"like_epsilon": True}, "v", CLIPPED / (CLIPPED + 1)),
        ({"v_like": 0.5}, "epsilon", 1 + 0.5 * (CLIPPED + 1) / CLIPPED),
        ({"gamma": 5.0, "like_epsilon": True, "debiased": True}, "v",
         np.minimum(SNR, 5.0) / (SNR + 1) * CLIPPED / (CLIPPED + 1) ** 2),
    ],
)  # fmt: skip
def test_weights_of_timesteps(settings, prediction, expected):
    np.testing.assert_allclose(
        timestep_weights(SCHEDULE, DiffusionObjective(**settings), prediction), expected, rtol=1e-5
    )


def test_debiased_weighs_one_error_alike_in_epsilon_and_x0():
    # An error e in x0 is one of sqrt(SNR) e in epsilon
    of = {name: timestep_weights(SCHEDULE, DiffusionObjective(debiased=True), name) for name in ("epsilon", "x0")}
    few = SNR < 1000
    np.testing.assert_allclose(of["x0"][few], (SNR * of["epsilon"])[few], rtol=1e-5)


def test_errors_are_made_alike_only_from_the_other_prediction():
    with pytest.raises(ConfigError, match="v_like adds the error of epsilon; .* predicts v"):
        DiffusionObjective(v_like=0.5).check(RunFacts(MODEL, ("unet",)))
    schedule = dataclasses.replace(MODEL.schedule, prediction="epsilon", zero_terminal_snr=False)
    model = dataclasses.replace(MODEL, schedule=schedule)
    with pytest.raises(ConfigError, match="like_epsilon scales the error of v; .* predicts epsilon"):
        DiffusionObjective(like_epsilon=True).check(RunFacts(model, ("unet",)))


def test_bent_losses_are_squares_at_first_and_straight_at_last():
    error, delta = np.array([0.0, 1e-4, -1e-3, 50.0, -700.0]), 0.2
    root = np.sqrt(error**2 + delta**2)
    expected = {"pseudo_huber": 2 * delta * (root - delta), "smooth_l1": 2 * (root - delta)}
    for name, values in expected.items():
        seen = np.asarray(ERRORS[name](jnp.asarray(error), jnp.float32(delta)))
        np.testing.assert_allclose(seen, values, rtol=1e-4)  # float64 loses the digits of (root - delta) at 1e-4
    np.testing.assert_allclose(ERRORS["pseudo_huber"](jnp.float32(1e-4), jnp.float32(delta)), 1e-8, rtol=1e-5)


def test_where_a_loss_bends_may_depend_on_the_timestep():
    t, sigma = np.arange(1000), SNR**-0.5
    np.testing.assert_allclose(huber_deltas(SCHEDULE, 0.1, "exponential"), np.exp(np.log(0.1) * t / 1000), rtol=1e-6)
    np.testing.assert_allclose(huber_deltas(SCHEDULE, 0.1, "snr"), 0.9 / (1 + sigma) ** 2 + 0.1, rtol=1e-6)
    np.testing.assert_array_equal(huber_deltas(SCHEDULE, 0.1, "constant"), np.float32(0.1))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"multires_noise": 17}, "at most 16 levels"),
        ({"multires_noise": 2, "multires_discount": 1.5}, "between 0 and 1"),
        ({"multires_noise": -1}, "multires_noise is a number from 0 on"),
        ({"offset_adaptive": float("nan")}, "offset_adaptive is a number"),
        ({"v_like": float("inf")}, "v_like is a number from 0 on"),
        ({"loss": "huber", "huber_schedule": "snr", "huber_delta": 2.0}, "at most 1"),
        ({"loss": "huber", "huber_schedule": "sigma"}, "constant, exponential or snr"),
    ],
)
def test_values_that_cannot_be_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        DiffusionObjective(**settings)
