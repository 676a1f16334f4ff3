"""Schedules and whole samplers of other tools behind the interface of the parity kit (tests/parity_adapter.py)."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.config import ScheduleConfig
from sdjax.samplers import Denoised, draws, make_schedule, repeat, scan_rows
from sdjax.samplers.optimised_schedules import AYS, AYS_TIMESTEPS
from sdjax.samplers.tools import comfyui_percent_to_sigma as percent_to_sigma
from sdjax.samplers.tools import recipe
from sdjax.schedule import PREDICTIONS, NoiseSchedule

NOISE = NoiseSchedule()
SAMPLER_OPTIONS = ("eta", "s_churn", "s_tmin", "s_tmax", "s_noise")


def sigma_schedule(tool, name, num_steps, options):
    """Returns the sigmas, or A1111's timesteps, that a tool's sampler gets."""
    options = dict(options)
    zero_snr = options.pop("zero_snr", False)
    if tool == "k_diffusion":
        schedule = make_schedule({"discrete": "normal"}.get(name, name), options)
        how = recipe(tool, "euler", schedule)
        return how.sigmas(NOISE, num_steps).sigma
    sampler = options.pop("sampler", "euler")
    if tool == "a1111":
        strength, exact = options.pop("strength", None), options.pop("fix_steps", False)
        how = recipe(tool, sampler, name, schedule_settings=options)
        noise = how.noise_schedule(NOISE, zero_terminal_snr=zero_snr)
        if how.on_timesteps:
            return how.timesteps(num_steps, strength=strength, exact_steps=exact)
        return how.sigmas(noise, num_steps, strength=strength, exact_steps=exact).sigma
    if name == "laplace":  # the node's sigmas end at the smallest one
        grid = make_schedule(name, options).grid(NOISE, max(num_steps - 1, 1), end="sigma_min")
        return grid.sigma[:num_steps]
    strength = None if name == "sd_turbo" else options.pop("denoise", None)
    how = recipe(tool, sampler, name, schedule_settings=options)
    return how.sigmas(how.noise_schedule(NOISE, zero_terminal_snr=zero_snr), num_steps, strength=strength).sigma


def sigma_to_timestep(tool, sigmas):
    """Returns the timesteps that a tool tells the network for sigmas."""
    if tool == "comfyui":
        return NOISE.nearest_timestep(np.asarray(sigmas))
    return np.clip(NOISE.timestep(np.asarray(sigmas), "log_sigma"), 0, 999)


def timestep_to_sigma(tool, timesteps):
    """Returns the sigmas of timesteps."""
    return NOISE.sigma(np.clip(timesteps, 0, 999), "log_sigma")


def comfyui_percent_to_sigma(percent):
    """Returns the sigma of ComfyUI's share of the schedule."""
    return percent_to_sigma(NOISE, percent)


def align_your_steps(name):
    """Returns a table of diffusers' AysSchedules."""
    return AYS_TIMESTEPS if name == "StableDiffusionTimesteps" else (*AYS[11][:-1], 0.0)


def a1111_guided_calls(sampler, schedule, num_steps, options):
    """Returns for each call of A1111's denoiser whether it computes the unconditional half."""
    how = recipe("a1111", sampler, schedule)
    return how.guided_calls(
        how.begin(NOISE, num_steps),
        num_steps=num_steps,
        minimum_sigma=options.get("s_min_uncond", 0.0),
        every_step=options.get("s_min_uncond_all", False),
        skip_early=options.get("skip_early_cond", 0.0),
    )


def begin(tool, sampler, schedule, num_steps, options, kind="epsilon", has_latent=False):
    """Returns the recipe and the start of a tool's run; `options` are the kit's."""
    options = dict(options)
    settings = {key: options.pop(key) for key in SAMPLER_OPTIONS if key in options}
    if settings.get("s_tmax") == 0:
        settings["s_tmax"] = math.inf
    how = recipe(tool, sampler, schedule, settings=settings)
    start = how.begin(
        NoiseSchedule(ScheduleConfig(prediction=kind)),
        num_steps,
        strength=options.get("strength", options.get("denoise")),
        exact_steps=options.get("fix_steps", False),
        has_latent=has_latent,
        zero_terminal_snr=options.get("zero_snr", False),
        first=options.get("start_step", 0),
        last=options.get("last_step"),
        remove_all_noise=options.get("force_full_denoise", False),
    )
    return how, start


def tool_sample(tool, sampler, schedule, num_steps, model, *, prediction, noise, latent, noises, options):
    """Returns the latent that a tool's sampler makes, with `model` as the network."""
    kind = prediction.removesuffix("_prediction")
    how, start = begin(tool, sampler, schedule, num_steps, options, kind, latent is not None)
    scale = options.get("scale")
    x0 = jnp.zeros_like(noise) if latent is None else jnp.asarray(latent)
    x = start.of_x0 * x0 + start.of_noise * jnp.asarray(noise)
    if start.rows is None:
        return np.asarray(x)

    class Network:
        def init(self, x):
            return ()

        def __call__(self, x, row, memory):
            sigma = row.sigma[0]
            weights = PREDICTIONS[kind].x0(sigma)
            out = model(x / jnp.sqrt(1 + sigma**2), row.timestep[0])
            first, second = out if isinstance(out, tuple) else (out, out)
            if scale is not None:  # the conditional and the unconditional output
                first = second + scale * how.scale_factor * (first - second)
            guided, other = (weights.first * x + weights.second * y for y in (first, second))
            return Denoised(guided, guided, other), memory

    rows = start.rows
    made = np.zeros((len(rows.index), *x.shape), np.float32)
    takes = draws(rows, idle=tool != "comfyui")
    if noises is not None and len(rows.index) == 1:
        made = noises  # an adaptive run draws by itself, one after the other
    elif noises is not None:
        made[np.flatnonzero(takes)[: len(noises)]] = noises[: takes.sum()]
    whole = repeat(rows, x.shape[0])
    network = Network()

    @jax.jit
    def run(x, made):
        state = dataclasses.replace(how.sampler.rule.init(x), memory=network.init(x))
        return scan_rows(how.sampler.rule, network, state, whole, made)

    state = run(x, made)
    return np.asarray(state.x if how.as_it_is else how.sampler.final(state, whole))
