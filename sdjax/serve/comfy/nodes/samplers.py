"""Nodes that sample: KSampler and its relatives, and the parts of the custom sampler."""

import dataclasses
from typing import Any

import numpy as np

from sdjax.diffusion.rules import PerpNeg
from sdjax.nn.jax_settings import pinned
from sdjax.samplers import Start
from sdjax.samplers.spacing import Grid
from sdjax.serve.comfy.definitions import choice, link, node, real, seed, switch, whole
from sdjax.serve.comfy.host import Run
from sdjax.serve.comfy.sampling import Sampled, sample
from sdjax.serve.comfy.schedules import SAMPLERS, SCHEDULERS
from sdjax.serve.comfy.values import Conditioning, Guider, Latent, Model, Noise, SamplerChoice, Sigmas

MOST_STEPS = 10_000
MODEL, LATENT = link("model", "MODEL"), link("latent_image", "LATENT")
SIDES = link("positive", "CONDITIONING"), link("negative", "CONDITIONING")
SCALE = real("cfg", 8.0, 0.0, 100.0, 0.1)
SWITCH = ("enable", "disable")
CHOICES = choice("sampler_name", SAMPLERS, "euler"), choice("scheduler", SCHEDULERS, "normal")


@node(
    "KSampler", "sampling",
    (MODEL, seed("seed"), whole("steps", 20, 1, MOST_STEPS), SCALE, *CHOICES, *SIDES, LATENT, real("denoise", 1.0)),
    ("LATENT",),
)  # fmt: skip
def ksampler(
    run: Run, model: Model, seed: int, steps: int, cfg: float, sampler_name: str, scheduler: str,
    positive: Conditioning, negative: Conditioning, latent_image: Latent, denoise: float,
) -> tuple[Latent]:  # fmt: skip
    """Samples a latent from noise, or from a latent with a part of the noise (`denoise`)."""
    return _ksampler(run, model, seed, steps, cfg, sampler_name, scheduler, positive, negative, latent_image, denoise)


@node(
    "KSamplerAdvanced", "sampling",
    (MODEL, choice("add_noise", SWITCH), seed("noise_seed"), whole("steps", 20, 1, MOST_STEPS), SCALE, *CHOICES, *SIDES,
     LATENT, whole("start_at_step", 0, 0, MOST_STEPS), whole("end_at_step", MOST_STEPS, 0, MOST_STEPS),
     choice("return_with_leftover_noise", ("disable", "enable"))), ("LATENT",), title="KSampler (Advanced)",
)  # fmt: skip
def ksampler_advanced(
    run: Run, model: Model, add_noise: str, noise_seed: int, steps: int, cfg: float, sampler_name: str, scheduler: str,
    positive: Conditioning, negative: Conditioning, latent_image: Latent, start_at_step: int, end_at_step: int,
    return_with_leftover_noise: str,
) -> tuple[Latent]:  # fmt: skip
    """Samples a part of the steps, with or without new noise."""
    return _ksampler(
        run, model, noise_seed, steps, cfg, sampler_name, scheduler, positive, negative, latent_image, 1.0,
        add_noise=add_noise == "enable", first=start_at_step, last=end_at_step,
        remove_all_noise=return_with_leftover_noise == "disable",
    )  # fmt: skip


def _ksampler(
    run: Run, model: Model, seed: int, steps: int, scale: float, sampler_name: str, scheduler: str,
    positive: Conditioning, negative: Conditioning, latent: Latent, denoise: float, *, add_noise: bool = True,
    **part: Any,
) -> tuple[Latent]:  # fmt: skip
    latent = fitting(latent, model)
    sampler = SamplerChoice(sampler_name)
    with pinned():
        start = sampler.recipe(scheduler).begin(
            model.pipe.schedule, steps, strength=None if denoise > 0.9999 else denoise, has_latent=True,
            zero_terminal_snr=model.zero_terminal_snr, **part,
        )  # fmt: skip
    made = sample(
        run, model, positive, negative, scale=scale, latent=latent, sampler=sampler, start=start,
        noise_seed=seed if add_noise else None, step_seed=seed,
    )  # fmt: skip
    return (_result(latent, made.latent),)


def fitting(latent: Latent, model: Model) -> Latent:
    """Returns a latent for a model: an empty one gets the model's channels. Raises ValueError for another model's."""
    channels = model.pipe.config.vae.latent_channels
    if latent.samples.shape[-1] == channels:
        return latent
    if latent.samples.any():
        raise ValueError(
            f"the model {model.pipe.config.name} has latents of {channels} channels; got {latent.samples.shape[-1]}"
        )
    return dataclasses.replace(latent, samples=np.zeros((*latent.samples.shape[:3], channels), np.float32))


def _result(latent: Latent, samples: Any) -> Latent:
    return dataclasses.replace(latent, samples=np.asarray(samples, np.float32))


@node("KSamplerSelect", "sampling/custom_sampling/samplers", (CHOICES[0],), ("SAMPLER",))
def select(run: Run, sampler_name: str) -> tuple[SamplerChoice]:
    """Chooses a sampler by name."""
    return (SamplerChoice(sampler_name),)


@node("RandomNoise", "sampling/custom_sampling/noise", (seed("noise_seed"),), ("NOISE",))
def random_noise(run: Run, noise_seed: int) -> tuple[Noise]:
    """Draws noise from a seed."""
    return (Noise(noise_seed),)


@node("DisableNoise", "sampling/custom_sampling/noise", (), ("NOISE",))
def no_noise(run: Run) -> tuple[Noise]:
    """Adds no noise."""
    return (Noise(None),)


@node(
    "BasicGuider", "sampling/custom_sampling/guiders", (MODEL, link("conditioning", "CONDITIONING")), ("GUIDER",),
)  # fmt: skip
def basic_guider(run: Run, model: Model, conditioning: Conditioning) -> tuple[Guider]:
    """Samples with one conditioning and no guidance."""
    return (Guider(model, conditioning),)


@node("CFGGuider", "sampling/custom_sampling/guiders", (MODEL, *SIDES, SCALE), ("GUIDER",))
def cfg_guider(run: Run, model: Model, positive: Conditioning, negative: Conditioning, cfg: float) -> tuple[Guider]:
    """Samples with classifier-free guidance."""
    return (Guider(model, positive, negative, cfg),)


@node(
    "PerpNegGuider", "_for_testing", (MODEL, *SIDES, link("empty_conditioning", "CONDITIONING"), SCALE,
    real("neg_scale", 1.0, 0.0, 100.0)), ("GUIDER",),
)  # fmt: skip
def perp_neg_guider(
    run: Run, model: Model, positive: Conditioning, negative: Conditioning, empty_conditioning: Conditioning,
    cfg: float, neg_scale: float,
) -> tuple[Guider]:  # fmt: skip
    """Samples with perpendicular negative guidance."""
    ruled = dataclasses.replace(model, rules=(*model.rules, PerpNeg(neg_scale)), empty=empty_conditioning)
    return (Guider(ruled, positive, negative, cfg),)


@node(
    "SamplerCustom", "sampling/custom_sampling",
    (MODEL, switch("add_noise", True), seed("noise_seed"), SCALE, *SIDES, link("sampler", "SAMPLER"),
     link("sigmas", "SIGMAS"), LATENT), ("LATENT", "LATENT"), ("output", "denoised_output"),
)  # fmt: skip
def custom(
    run: Run, model: Model, add_noise: bool, noise_seed: int, cfg: float, positive: Conditioning,
    negative: Conditioning, sampler: SamplerChoice, sigmas: Sigmas, latent_image: Latent,
) -> tuple[Latent, Latent]:  # fmt: skip
    """Samples with a sampler over given noise levels."""
    guider = Guider(model, positive, negative, cfg)
    return _custom(run, guider, sampler, sigmas, latent_image, noise_seed if add_noise else None, noise_seed)


@node(
    "SamplerCustomAdvanced", "sampling/custom_sampling",
    (link("noise", "NOISE"), link("guider", "GUIDER"), link("sampler", "SAMPLER"), link("sigmas", "SIGMAS"), LATENT),
    ("LATENT", "LATENT"), ("output", "denoised_output"),
)  # fmt: skip
def custom_advanced(
    run: Run, noise: Noise, guider: Guider, sampler: SamplerChoice, sigmas: Sigmas, latent_image: Latent
) -> tuple[Latent, Latent]:
    """Samples with a guider and a sampler over given noise levels."""
    return _custom(run, guider, sampler, sigmas, latent_image, noise.seed, noise.seed or 0)


def _custom(
    run: Run, guider: Guider, sampler: SamplerChoice, sigmas: Sigmas, latent: Latent, noise_seed: int | None,
    step_seed: int,
) -> tuple[Latent, Latent]:  # fmt: skip
    model = guider.model
    latent = fitting(latent, model)
    with pinned():
        start = started(model, sampler, sigmas)
    made: Sampled = sample(
        run, model, guider.positive, guider.negative, scale=guider.scale, latent=latent, sampler=sampler, start=start,
        noise_seed=noise_seed, step_seed=step_seed,
    )  # fmt: skip
    return _result(latent, made.latent), _result(latent, made.x0)


def started(model: Model, sampler: SamplerChoice, sigmas: Sigmas) -> Start:
    """Returns the start of a run over given noise levels. Raises ValueError for levels that do not fall."""
    if len(sigmas) < 2:
        return Start(None, np.float32(1), np.float32(0))
    levels = np.asarray(sigmas, np.float64)
    if not np.isfinite(levels).all() or (np.diff(levels) > 0).any() or levels[-1] < 0:
        raise ValueError("the sigmas of a sampler fall, and end at 0 or above")
    recipe = sampler.recipe()
    schedule = recipe.noise_schedule(model.pipe.schedule, zero_terminal_snr=model.zero_terminal_snr)
    inside = np.maximum(levels, schedule.sigmas[0] / 2)
    grid = Grid(np.clip(schedule.timestep(inside, "log_sigma"), 0, schedule.num_timesteps - 1), levels)
    largest = levels[0] >= schedule.sigmas[-1] * (1 - 1e-5)
    of_noise = np.sqrt(1 + levels[0] ** 2) if largest else levels[0]
    return Start(recipe.rows(schedule, grid), np.float32(1), np.float32(of_noise), recipe.as_it_is)
