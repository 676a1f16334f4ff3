"""Nodes that make and cut noise levels, and that choose samplers with their settings."""

import numpy as np

from sdjax.samplers.tools import recipe
from sdjax.serve.comfy.definitions import Input, choice, link, node, real, whole
from sdjax.serve.comfy.host import Run
from sdjax.serve.comfy.nodes.samplers import MOST_STEPS
from sdjax.serve.comfy.schedules import SCHEDULERS
from sdjax.serve.comfy.values import Model, SamplerChoice, Sigmas

MODEL, SIGMAS = link("model", "MODEL"), link("sigmas", "SIGMAS")
STEPS = whole("steps", 20, 1, MOST_STEPS)
MAX, MIN = real("sigma_max", 14.614642, 0.0, 5000.0), real("sigma_min", 0.0291675, 0.0, 5000.0)
RHO = real("rho", 7.0, 0.0, 100.0)
PLACE = "sampling/custom_sampling/schedulers"


def _levels(schedule: str, steps: int, model: Model | None, strength: float | None = None, **settings: float) -> Sigmas:
    """Returns the noise levels of a schedule. Those that need no model have the levels of Stable Diffusion's."""
    from sdjax.config import ScheduleConfig
    from sdjax.schedule import NoiseSchedule

    how = recipe("comfyui", "euler", schedule, schedule_settings=settings)
    noise = NoiseSchedule(ScheduleConfig()) if model is None else model.pipe.schedule
    snr = model is not None and model.zero_terminal_snr
    grid = how.sigmas(how.noise_schedule(noise, zero_terminal_snr=snr), steps, strength=strength)
    return np.asarray(grid.sigma, np.float64)


@node(
    "BasicScheduler", PLACE, (MODEL, choice("scheduler", SCHEDULERS, "normal"), STEPS, real("denoise", 1.0)),
    ("SIGMAS",),
)  # fmt: skip
def basic(run: Run, model: Model, scheduler: str, steps: int, denoise: float) -> tuple[Sigmas]:
    """Gives the noise levels of a schedule, of a part of them for `denoise` below 1."""
    if denoise <= 0:
        return (np.zeros(0),)
    return (_levels(scheduler, steps, model, denoise),)


@node("KarrasScheduler", PLACE, (STEPS, MAX, MIN, RHO), ("SIGMAS",))
def karras(run: Run, steps: int, sigma_max: float, sigma_min: float, rho: float) -> tuple[Sigmas]:
    """Gives the noise levels of Karras et al."""
    return (_levels("karras", steps, None, sigma_max=sigma_max, sigma_min=sigma_min, rho=rho),)


@node("ExponentialScheduler", PLACE, (STEPS, MAX, MIN), ("SIGMAS",))
def exponential(run: Run, steps: int, sigma_max: float, sigma_min: float) -> tuple[Sigmas]:
    """Gives noise levels that fall by one factor."""
    return (_levels("exponential", steps, None, sigma_max=sigma_max, sigma_min=sigma_min),)


@node("PolyexponentialScheduler", PLACE, (STEPS, MAX, MIN, real("rho", 1.0, 0.0, 100.0)), ("SIGMAS",))
def polyexponential(run: Run, steps: int, sigma_max: float, sigma_min: float, rho: float) -> tuple[Sigmas]:
    """Gives polyexponential noise levels."""
    return (_levels("polyexponential", steps, None, sigma_max=sigma_max, sigma_min=sigma_min, rho=rho),)


@node(
    "SDTurboScheduler", PLACE, (MODEL, whole("steps", 1, 1, 10), real("denoise", 1.0)), ("SIGMAS",),
)  # fmt: skip
def turbo(run: Run, model: Model, steps: int, denoise: float) -> tuple[Sigmas]:
    """Gives the noise levels of SD-Turbo: every hundredth timestep from the end."""
    noise = model.pipe.schedule
    first = 10 - int(10 * denoise)
    timesteps = (np.arange(1, 11) * 100 - 1)[::-1][first : first + steps]
    return (np.append(noise.sigmas[np.minimum(timesteps, noise.num_timesteps - 1)], 0.0),)


@node(
    "BetaSamplingScheduler", PLACE, (MODEL, STEPS, real("alpha", 0.6, 0.0, 50.0), real("beta", 0.6, 0.0, 50.0)),
    ("SIGMAS",),
)  # fmt: skip
def beta(run: Run, model: Model, steps: int, alpha: float, beta: float) -> tuple[Sigmas]:
    """Gives noise levels whose timesteps are quantiles of a beta distribution."""
    return (_levels("beta", steps, model, alpha=alpha, beta=beta),)


@node(
    "AlignYourStepsScheduler", PLACE, (choice("model_type", ("SD1",)), whole("steps", 10, 1, MOST_STEPS),
    real("denoise", 1.0)), ("SIGMAS",),
)  # fmt: skip
def align_your_steps(run: Run, model_type: str, steps: int, denoise: float) -> tuple[Sigmas]:
    """Gives the optimised noise levels for Stable Diffusion 1."""
    kept = steps if denoise >= 1 else round(steps * denoise)
    return (_levels("AlignYourStepsScheduler", steps, None)[-(kept + 1) :] if kept else np.zeros(0),)


@node("SplitSigmas", "sampling/custom_sampling/sigmas", (SIGMAS, whole("step", 0, 0, MOST_STEPS)), ("SIGMAS", "SIGMAS"),
      ("high_sigmas", "low_sigmas"))  # fmt: skip
def split(run: Run, sigmas: Sigmas, step: int) -> tuple[Sigmas, Sigmas]:
    """Cuts noise levels in two behind a step."""
    return sigmas[: step + 1], sigmas[step:]


@node("SplitSigmasDenoise", "sampling/custom_sampling/sigmas", (SIGMAS, real("denoise", 1.0)), ("SIGMAS", "SIGMAS"),
      ("high_sigmas", "low_sigmas"))  # fmt: skip
def split_by_share(run: Run, sigmas: Sigmas, denoise: float) -> tuple[Sigmas, Sigmas]:
    """Cuts noise levels in two, so that the second part has a share of the steps."""
    steps = max(len(sigmas) - 1, 0)
    left = round(steps * denoise)
    return sigmas[: len(sigmas) - left], sigmas[-(left + 1) :]


@node("FlipSigmas", "sampling/custom_sampling/sigmas", (SIGMAS,), ("SIGMAS",))
def flip(run: Run, sigmas: Sigmas) -> tuple[Sigmas]:
    """Turns noise levels around; an end of 0 becomes 0.0001."""
    turned = np.array(sigmas[::-1])
    if len(turned) and turned[0] == 0:
        turned[0] = 0.0001
    return (turned,)


@node(
    "SetFirstSigma", "sampling/custom_sampling/sigmas", (SIGMAS, real("sigma", 136.0, 0.0, 20000.0)), ("SIGMAS",),
)  # fmt: skip
def set_first(run: Run, sigmas: Sigmas, sigma: float) -> tuple[Sigmas]:
    """Replaces the first noise level."""
    out = np.array(sigmas)
    out[:1] = sigma
    return (out,)


ETA, S_NOISE = real("eta", 1.0, 0.0, 100.0), real("s_noise", 1.0, 0.0, 100.0)
DEVICE = choice("noise_device", ("gpu", "cpu"))


def _sampler(name: str, sampler: str, inputs: tuple[Input, ...], fields: dict[str, str]) -> None:
    """Adds a node that gives a sampler with settings: `fields` are our fields by the names of the inputs."""

    def make(run: Run, **values: object) -> tuple[SamplerChoice]:
        settings = {fields[key]: value for key, value in values.items() if key in fields}
        if values.get("s_noise", 1.0) != 1.0 and "s_noise" not in fields:
            raise ValueError("s_noise is 1: no other weight of the noise is known here")
        return (SamplerChoice(sampler, settings),)

    make.__doc__ = f"Gives the sampler {sampler} with its settings."
    node(name, "sampling/custom_sampling/samplers", inputs, ("SAMPLER",))(make)


_sampler("SamplerEulerAncestral", "euler_ancestral", (ETA, S_NOISE), {"eta": "eta"})
_sampler("SamplerDPMPP_2S_Ancestral", "dpmpp_2s_ancestral", (ETA, S_NOISE), {"eta": "eta"})
_sampler("SamplerDPMPP_SDE", "dpmpp_sde", (ETA, S_NOISE, real("r", 0.5, 0.0, 100.0), DEVICE), {"eta": "eta", "r": "r"})
_sampler("SamplerDPMPP_3M_SDE", "dpmpp_3m_sde", (ETA, S_NOISE, DEVICE), {"eta": "eta"})
_sampler(
    "SamplerDPMPP_2M_SDE", "dpmpp_2m_sde", (choice("solver_type", ("midpoint", "heun")), ETA, S_NOISE, DEVICE),
    {"eta": "eta"},
)  # fmt: skip
_sampler("SamplerLMS", "lms", (whole("order", 4, 1, 4),), {"order": "order"})
