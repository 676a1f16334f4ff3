"""Spacings: named ways to choose the timesteps where steps start and end.

Some take whole timesteps at regular distances ("even", "leading", "trailing", "compvis", "lcm"). The others divide the
range from the last timestep to the first evenly in some measure; their points may lie between timesteps.

Source: ldm's make_ddim_timesteps; diffusers' timestep_spacing, after table 2 of Lin et al. 2023 (arXiv 2305.08891);
DPM-Solver's get_time_steps; k-diffusion's get_sigmas_karras (Karras et al. 2022, arXiv 2206.00364, eq. 5).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from sdjax.checks.arguments import whole
from sdjax.schedule import NoiseSchedule

MAX_STEPS = 10_000
LCM_TIMESTEPS = 50


class Grid(NamedTuple):
    """The ends of n steps: step i goes from entry i to i + 1. float64 [n + 1], falling; the last sigma may be 0."""

    timestep: np.ndarray
    sigma: np.ndarray


def even_timesteps(schedule: NoiseSchedule, num_steps: int) -> np.ndarray:
    """Returns 1 + floor(i num_timesteps / num_steps), falling: exactly `num_steps`, over the whole schedule.

    Equal to ldm's DDIM timesteps if the division has no remainder (50 steps: 981, 961, ..., 1). Otherwise ldm makes
    more steps than asked for ("compvis"). diffusers ("leading") rounds the distance down, so that the first step starts
    lower, down to the middle (600 steps: at 600), which is too low for pure noise. A single step starts at the last
    timestep: at the first one it would do nothing.
    """
    last = schedule.num_timesteps - 1
    if num_steps == 1:
        return np.array([last])
    timesteps = np.arange(num_steps)[::-1] * schedule.num_timesteps // num_steps
    return timesteps + min(1, last - timesteps[0])


def leading_timesteps(schedule: NoiseSchedule, num_steps: int) -> np.ndarray:
    """Returns 1, 1 + c, 1 + 2c, ... with c = num_timesteps // num_steps: exactly `num_steps`, falling.

    Equal to diffusers' "leading" with steps_offset 1, except that a single step starts at the last timestep.
    """
    last = schedule.num_timesteps - 1
    if num_steps == 1:
        return np.array([last])
    timesteps = np.arange(num_steps)[::-1] * (schedule.num_timesteps // num_steps)
    return timesteps + min(1, last - timesteps[0])


def compvis_timesteps(schedule: NoiseSchedule, num_steps: int) -> np.ndarray:
    """Returns ldm's DDIM timesteps, falling. Their number is ldm's too: 31 for `num_steps` 30.

    The reference fails if the largest one is num_timesteps; here the last timestep replaces it.
    """
    timesteps = np.arange(0, schedule.num_timesteps, schedule.num_timesteps // num_steps) + 1
    return np.unique(np.minimum(timesteps, schedule.num_timesteps - 1))[::-1]


def trailing_timesteps(schedule: NoiseSchedule, num_steps: int) -> np.ndarray:
    """Returns `num_steps` timesteps counted back from the last one, which is always used. For zero terminal SNR."""
    count = schedule.num_timesteps
    return np.round(count - np.arange(num_steps) * (count / num_steps)) - 1


def lcm_timesteps(schedule: NoiseSchedule, num_steps: int) -> np.ndarray:
    """Returns `num_steps` of the 50 timesteps of the distillation of latent consistency models (999, 979, ..., 19)."""
    distilled = np.arange(LCM_TIMESTEPS, 0, -1) * (schedule.num_timesteps // LCM_TIMESTEPS) - 1
    if num_steps > LCM_TIMESTEPS:
        raise ValueError(f"latent consistency models take at most {LCM_TIMESTEPS} steps; got {num_steps}")
    return distilled[np.arange(num_steps) * LCM_TIMESTEPS // num_steps]


TIMESTEPS: dict[str, Callable[[NoiseSchedule, int], np.ndarray]] = {
    "even": even_timesteps,
    "leading": leading_timesteps,
    "compvis": compvis_timesteps,
    "trailing": trailing_timesteps,
    "lcm": lcm_timesteps,
}


def _even_timesteps(schedule: NoiseSchedule, first: float, last: float, points: int, interpolation: str) -> Grid:
    timestep = np.linspace(first, last, points)
    return Grid(timestep, schedule.sigma(timestep, interpolation))


def time_uniform(schedule: NoiseSchedule, first: float, last: float, points: int) -> Grid:
    """Returns equidistant timesteps; log alpha is interpolated between whole timesteps (DPM-Solver)."""
    return _even_timesteps(schedule, first, last, points, "log_alpha")


def linspace(schedule: NoiseSchedule, first: float, last: float, points: int) -> Grid:
    """Returns equidistant timesteps; sigma is interpolated between whole timesteps (diffusers' Euler and LMS)."""
    return _even_timesteps(schedule, first, last, points, "sigma")


def time_quadratic(schedule: NoiseSchedule, first: float, last: float, points: int) -> Grid:
    """Returns timesteps, counted from 1, whose square roots are equidistant (DPM-Solver)."""
    timestep = np.linspace((first + 1) ** 0.5, (last + 1) ** 0.5, points) ** 2 - 1
    return Grid(timestep, schedule.sigma(timestep))


def _of_sigmas(schedule: NoiseSchedule, first: float, last: float, points: int, rho: float, interpolation: str) -> Grid:
    """Returns sigmas whose rho-th roots are equidistant. With infinite rho their logarithms are equidistant."""
    high, low = schedule.sigma(np.array([first, last]), interpolation)
    share = np.linspace(0, 1, points)
    if np.isinf(rho):
        sigma = np.exp((1 - share) * np.log(high) + share * np.log(low))
    else:
        sigma = ((1 - share) * high ** (1 / rho) + share * low ** (1 / rho)) ** rho
    return Grid(schedule.timestep(sigma, interpolation), sigma)


def log_snr(schedule: NoiseSchedule, first: float, last: float, points: int) -> Grid:
    """Returns sigmas with equidistant logarithms; timesteps are interpolated in log alpha (DPM-Solver)."""
    return _of_sigmas(schedule, first, last, points, np.inf, "log_alpha")


def exponential(schedule: NoiseSchedule, first: float, last: float, points: int) -> Grid:
    """Returns sigmas with equidistant logarithms; timesteps are interpolated in log sigma (k-diffusion)."""
    return _of_sigmas(schedule, first, last, points, np.inf, "log_sigma")


def karras(schedule: NoiseSchedule, first: float, last: float, points: int) -> Grid:
    """Returns sigmas with equidistant 7th roots; timesteps are interpolated in log sigma (k-diffusion)."""
    return _of_sigmas(schedule, first, last, points, 7.0, "log_sigma")


# (schedule, timestep to start from, timestep to end at, number of points) -> Grid
RANGES: dict[str, Callable[[NoiseSchedule, float, float, int], Grid]] = {
    "linspace": linspace,
    "time_uniform": time_uniform,
    "time_quadratic": time_quadratic,
    "logSNR": log_snr,
    "exponential": exponential,
    "karras": karras,
}
SPACINGS: tuple[str, ...] = (*TIMESTEPS, *RANGES)
OF_SIGMA = ("logSNR", "exponential", "karras")  # even in a function of sigma, which is infinite for pure noise


def fitting(spacing: str, schedule: NoiseSchedule) -> str:
    """Returns the default spacing on this schedule, where `spacing` is the sampler's default.

    With zero terminal SNR, the last timestep is pure noise, and "even" leaves it out. Sampling would then start from
    pure noise at a timestep where the network expects latents that still contain the image's mean. The fewer the
    steps, the worse. "karras" takes too long steps where such a schedule is steep. For such a schedule, "trailing"
    replaces both.

    Source: Lin et al. 2023 (arXiv 2305.08891), section 3.3.
    """
    return "trailing" if schedule.config.zero_terminal_snr and spacing in ("even", "karras") else spacing


def from_noise_alone(schedule: NoiseSchedule, timestep: float) -> bool:
    """Returns whether this is the last timestep of a schedule with zero terminal SNR: pure noise, infinite sigma.

    The tables have a finite number for that sigma, which means nothing. So a step from there must be of first order,
    x' = x0 + sigma' noise: in a difference or mean over the step that number would dominate.
    """
    return schedule.config.zero_terminal_snr and timestep == schedule.num_timesteps - 1


def after_noise_alone(schedule: NoiseSchedule, num_steps: int) -> float:
    """Returns the timestep where a first step from pure noise ends: that of "trailing" with `num_steps` steps."""
    return max(schedule.num_timesteps * (1 - 1 / num_steps) - 1, 0.0)


def _range(name: str, schedule: NoiseSchedule, num_steps: int, points: int) -> Grid:
    """Returns the points of the range `name`, from the last timestep to the first.

    If the last timestep is pure noise, a range that is even in a function of sigma would spend most of its steps on
    nearly pure noise. Its first step is then as long as that of "trailing", and the range starts after it.
    """
    last = schedule.num_timesteps - 1.0
    if not (name in OF_SIGMA and from_noise_alone(schedule, last) and points > 1):
        return RANGES[name](schedule, last, 0.0, points)
    timestep, sigma = RANGES[name](schedule, after_noise_alone(schedule, num_steps), 0.0, points - 1)
    return Grid(np.append(last, timestep), np.append(schedule.sigmas[-1], sigma))


def make_grid(name: str, schedule: NoiseSchedule, num_steps: int, *, end: str, skip: int = 0) -> Grid:
    """Returns the grid of the spacing `name` without its first `skip` steps. No step has length 0.

    `end` "sigma_min" ends at the noise of the first timestep, "zero" without noise. If the last step already starts at
    the first timestep, it always ends without noise.

    Raises ValueError if the schedule or the spacing cannot have `num_steps` steps.
    """
    most = schedule.num_timesteps if name in TIMESTEPS else MAX_STEPS
    num_steps = whole("num_steps", num_steps, 1, most, context=f" with spacing {name!r}")
    if name in TIMESTEPS:
        timestep = TIMESTEPS[name](schedule, num_steps).astype(np.float64)
        sigma = schedule.sigmas[timestep.astype(int)]
    else:
        # One more point if the end of the range is the end of the last step
        points = num_steps + (end == "sigma_min")
        timestep, sigma = _range(name, schedule, num_steps, points)
        timestep, sigma = timestep[:num_steps], sigma[:num_steps]
    last = schedule.sigmas[0] if end == "sigma_min" and timestep[-1] > 0 else 0.0
    grid = Grid(np.append(timestep, 0.0), np.append(sigma, last))
    if not 0 <= skip < len(timestep):
        raise ValueError(f"cannot leave out the first {skip} of {len(timestep)} steps: at least one must remain")
    return Grid(grid.timestep[skip:], grid.sigma[skip:])
