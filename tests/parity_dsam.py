"""The parity kit's diffusers schedulers, and ComfyUI's and k-diffusion's multistep samplers, by sdjax's samplers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from sdjax import samplers
from sdjax.diffusion.conditioning import Conditioning
from sdjax.diffusion.denoiser import make_denoiser
from sdjax.diffusion.guidance import Unguided
from sdjax.diffusion.network import FunctionNetwork
from sdjax.samplers.diffusers.grid import DiffusersGrid
from sdjax.schedule import NoiseSchedule

# k-diffusion's and ComfyUI's functions, and what their keywords are here
MULTISTEP = {
    ("k_diffusion", "lms"): lambda order=4: samplers.LMS(order=order),
    ("comfyui", "lms"): lambda order=4: samplers.LMS(order=order, ends_in_x0=True),
    ("comfyui", "uni_pc"): lambda: dataclasses.replace(samplers.SAMPLERS["unipc_bh1"]()),
    ("comfyui", "uni_pc_bh2"): lambda: dataclasses.replace(samplers.SAMPLERS["unipc_bh2"]()),
    ("comfyui", "ipndm"): lambda max_order=4: samplers.IPNDM(order=max_order),
    ("comfyui", "ipndm_v"): lambda max_order=4: samplers.IPNDM(order=max_order, variable_steps=True),
    ("comfyui", "deis"): lambda max_order=3: dataclasses.replace(samplers.SAMPLERS["deis"](), order=max_order),
    ("comfyui", "sa_solver"): lambda **options: sa_solver("sa_solver", **options),
    ("comfyui", "sa_solver_pece"): lambda **options: sa_solver("sa_solver_pece", **options),
}


def sa_solver(name, simple_order_2=False, **options):
    return dataclasses.replace(samplers.SAMPLERS[name](), simple=simple_order_2, **options)


def multistep_ksampler(tool, name, sigmas, x, denoise, noises, options):
    """Returns what the function makes of x, which is already times sigmas[0]."""
    spacing = DiffusersGrid(given_sigmas=tuple(map(float, sigmas)))
    sampler = dataclasses.replace(MULTISTEP[tool, name](**options), spacing=spacing)
    rows = sampler.steps(NoiseSchedule(), len(sigmas) - 1)
    x = jnp.asarray(x, jnp.float32)

    @jax.jit
    def run(x, rows, noise):
        denoiser = samplers.Stateless(lambda x, row: denoise(x, row.sigma[0]))
        return samplers.scan_rows(sampler.rule, denoiser, sampler.rule.init(x), rows, noise).x

    return np.asarray(run(x, samplers.repeat(rows, len(x)), placed(rows, noises, x)))


def made(config, num_steps, timesteps=None, sigmas=None, **step):
    """Returns the sampler, and the number of steps."""
    sampler = samplers.from_diffusers(config, timesteps=timesteps, sigmas=sigmas, **step)
    return sampler, num_steps or len(timesteps or sigmas[1:])


def left_out(num_steps, strength):
    """Returns how many steps image to image leaves out, as StableDiffusionImg2ImgPipeline counts them."""
    return num_steps - min(int(num_steps * strength), num_steps)


def diffusers_timesteps(config, num_steps, *, timesteps=None, sigmas=None, strength=1.0):
    """Returns the timesteps that the network is told, in order."""
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
