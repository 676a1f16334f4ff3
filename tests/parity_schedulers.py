"""diffusers' schedulers by sdjax's samplers, in the form in which the parity kit calls them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from sdjax import samplers
from sdjax.config import ScheduleConfig
from sdjax.diffusion.conditioning import Conditioning
from sdjax.diffusion.denoiser import make_denoiser
from sdjax.diffusion.guidance import Unguided
from sdjax.diffusion.network import FunctionNetwork
from sdjax.schedule import NoiseSchedule

# Each with the spacing that Stable Diffusion's scheduler_config.json, or the class's default, gives it
SCHEDULERS = {
    "pndm": samplers.PNDM(spacing="leading"),
    "lms": samplers.LMS(),
    "euler": samplers.Euler(),
    "euler_ancestral": samplers.Euler(eta=1.0),
    "ddpm": samplers.DDPM(spacing="leading"),
}
# init_noise_sigma: what the start is multiplied by in diffusers' scale. Theirs is variance-preserving for PNDM and DDPM
# (x_T as it is), for the others linspace spacing starts at sigma_max: sdjax's own convention for each of the two.


def scheduler(name, num_steps, prediction, x_T, model, noises):
    """Returns the final sample, by the kit's description in image_towers.py."""
    prediction = {"epsilon": "epsilon", "v_prediction": "v"}[prediction]
    schedule = NoiseSchedule(ScheduleConfig(prediction=prediction))
    sampler = SCHEDULERS[name]
    rows = sampler.steps(schedule, num_steps)

    def apply(x, t, conditioning):
        return model(x, t[0])

    x = sampler.initial(jnp.asarray(x_T), rows)
    denoise = make_denoiser(FunctionNetwork(apply), {}, prediction, [Conditioning()], Unguided())
    noise = jnp.zeros((1, *x.shape)) if noises is None else jnp.asarray(noises)
    run = jax.jit(functools.partial(samplers.sample, sampler, denoise))
    return np.asarray(run(x, rows, noise))


def scheduler_timesteps(name, num_steps):
    """Returns the timesteps at which the network is called, in that order."""
    return SCHEDULERS[name].steps(NoiseSchedule(), num_steps).timestep
