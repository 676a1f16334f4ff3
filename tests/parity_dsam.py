"""diffusers' schedulers by sdjax's samplers, in the form in which the parity kit calls them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from sdjax import samplers
from sdjax.diffusion.conditioning import Conditioning
from sdjax.diffusion.denoiser import make_denoiser
from sdjax.diffusion.guidance import Unguided
from sdjax.diffusion.network import FunctionNetwork


def made(config, num_steps, timesteps=None, sigmas=None, **step):
    """Returns the sampler, and the number of steps."""
    sampler = samplers.from_diffusers(config, timesteps=timesteps, sigmas=sigmas, **step)
    return sampler, num_steps or len(timesteps or sigmas[1:])


def left_out(num_steps, strength):
    """Returns how many steps image to image leaves out, as StableDiffusionImg2ImgPipeline counts them."""
    return num_steps - min(int(num_steps * strength), num_steps)


def diffusers_timesteps(config, num_steps, *, timesteps=None, sigmas=None, strength=1.0):
    """Returns the timesteps that the network is told, in order."""
    if config["_class_name"] == "DDIMInverseScheduler":  # ours refuses to limit x0, which does not move a timestep
        config = {**config, "clip_sample": False}
    sampler, count = made(config, num_steps, timesteps, sigmas)
    return sampler.steps(sampler.noise, count, skip=left_out(count, strength)).timestep


def diffusers_sigmas(config, num_steps, *, timesteps=None, sigmas=None):
    """Returns the sigmas of all steps, the last one included."""
    sampler, count = made(config, num_steps, timesteps, sigmas)
    return sampler.sigmas(count)


def diffusers_sample(
    config, num_steps, model, noises, *, x_T=None, x0=None, start_noise=None, timesteps=None, sigmas=None,
    strength=1.0, **step,
):  # fmt: skip
    """Returns the final sample."""
    sampler, count = made(config, num_steps, timesteps, sigmas, **step)
    rows = sampler.steps(sampler.noise, count, skip=left_out(count, strength))
    sign = -1 if sampler.negated else 1

    def apply(x, t, conditioning):
        return sign * model(x, t[0])

    if x_T is None:
        x = jnp.asarray(x0) + sampler.grid(sampler.noise, count).sigma[left_out(count, strength)] * start_noise
    else:
        x = sampler.initial(jnp.asarray(x_T), rows)
    denoise = make_denoiser(
        FunctionNetwork(apply), {}, sampler.noise.config.prediction, [Conditioning()], Unguided()
    )  # fmt: skip
    run = jax.jit(functools.partial(samplers.sample, sampler, denoise))
    return np.asarray(run(x, rows, placed(rows, noises, x)))


def placed(rows, noises, x):
    """Returns the noise of each row: the tool's draws in their order."""
    n = len(rows.index)
    if noises is None:
        return jnp.zeros((n, *x.shape))
    if len(noises) == n:
        return jnp.asarray(noises)
    out = np.zeros((n, *x.shape), np.float32)
    drawn = np.flatnonzero(rows.coef.noise)
    assert len(drawn) == len(noises), (drawn, len(noises))
    out[drawn] = noises
    return jnp.asarray(out)
