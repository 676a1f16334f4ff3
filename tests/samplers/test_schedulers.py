"""PNDM, LMS, Euler, Euler ancestral and DDPM against diffusers' schedulers, on a formula instead of a network."""

import numpy as np
import pytest
from parity_schedulers import scheduler, scheduler_timesteps

import reference

NAMES = ("pndm", "lms", "euler", "euler_ancestral", "ddpm")
PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction"}


def formula(prediction, shape):
    """Returns model(x, t): x times a number that changes with the timestep and from entry to entry."""
    entries = (1 + 0.1 * np.cos(np.arange(np.prod(shape)))).reshape(shape).astype(np.float32)
    start, slope = (0.1, 0.85) if prediction == "epsilon" else (0.2, -0.4)
    return lambda x, t: x * ((t * np.float32(slope / 999) + np.float32(start)) * entries)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_steps", [7, 20, 50])
def test_final_samples_equal_diffusers(name, num_steps):
    arrays = reference.golden("schedulers")
    for prediction, spelled in PREDICTIONS.items():
        noises = arrays["noises"] if name in ("euler_ancestral", "ddpm") else None
        model = formula(prediction, arrays["x_T"].shape)
        got = scheduler(name, num_steps, spelled, arrays["x_T"], model, noises)
        want = arrays[f"{name}_{prediction}_{num_steps}/sample"]
        # float32 rounding over 50 steps, ours in another scale than theirs
        assert np.linalg.norm(got - want) < 5e-6 * np.linalg.norm(want)


@pytest.mark.parametrize("name", NAMES)
def test_the_network_is_called_at_diffusers_timesteps(name):
    arrays = reference.golden("schedulers")
    for num_steps in (7, 20, 50):
        want = arrays[f"{name}_epsilon_{num_steps}/timesteps"]
        np.testing.assert_allclose(scheduler_timesteps(name, num_steps), want, rtol=1e-6)
