"""Where steps start and end: named ways to choose them from a schedule.

Some take whole timesteps at regular distances ("even", "leading", "trailing", "compvis", "lcm"); the others run
through a range, from the last timestep to the first, evenly in some measure, and may fall between timesteps.

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
    """Steps: step i leads from entry i to entry i + 1. float64 [n + 1], noise falling; the last sigma may be 0."""

    timestep: np.ndarray
    sigma: np.ndarray


def even_timesteps(schedule: NoiseSchedule, num_steps: int) -> np.ndarray:
    """Returns 1 + floor(i num_timesteps / num_steps), falling: exactly `num_steps`, over the whole schedule.

    Equal to ldm's DDIM timesteps where the division leaves no rest (50 steps: 981, 961, ..., 1). Elsewhere ldm makes
    more steps than asked for ("compvis"), and diffusers ("leading") rounds the distance down, so that the first step
    starts lower, up to halfway (600 steps: at 600): too low for pure noise. A single step starts at the last timestep:
    at the first one it would do nothing.
    """
    last = schedule.num_timesteps - 1
    if num_steps == 1:
        return np.array([last])
    timesteps = np.arange(num_steps)[::-1] * schedule.num_timesteps // num_steps
    return timesteps + min(1, last - timesteps[0])


def leading_timesteps(schedule: NoiseSchedule, num_steps: int) -> np.ndarray:
    """Returns 1, 1 + c, 1 + 2c, ... with c = num_timesteps // num_steps: exactly `num_steps`, falling.

    Equal to diffusers' "leading" with steps_offset 1, but for a single step, which starts at the last timestep.
    """
    last = schedule.num_timesteps - 1
    if num_steps == 1:
        return np.array([last])
    timesteps = np.arange(num_steps)[::-1] * (schedule.num_timesteps // num_steps)
    return timesteps + min(1, last - timesteps[0])


def compvis_timesteps(schedule: NoiseSchedule, num_steps: int) -> np.ndarray:
    """Returns ldm's DDIM timesteps in its own counting, falling: 30 asked for makes 31.

    The reference fails where the largest comes out as num_timesteps; here it is the last timestep instead.
    """
    timesteps = np.arange(0, schedule.num_timesteps, schedule.num_timesteps // num_steps) + 1
    return np.unique(np.minimum(timesteps, schedule.num_timesteps - 1))[::-1]


def trailing_timesteps(schedule: NoiseSchedule, num_steps: int) -> np.ndarray:
    """Returns `num_steps` timesteps counted back from the last one, which is always used: for zero terminal SNR."""
    count = schedule.num_timesteps
    return np.round(count - np.arange(num_steps) * (count / num_steps)) - 1


def lcm_timesteps(schedule: NoiseSchedule, num_steps: int) -> np.ndarray:
    """Returns `num_steps` of the 50 timesteps on which latent consistency models are distilled (999, 979, ..., 19)."""
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
    """Returns timesteps at equal distances, log alpha interpolated between them (DPM-Solver)."""
    return _even_timesteps(schedule, first, last, points, "log_alpha")


def linspace(schedule: NoiseSchedule, first: float, last: float, points: int) -> Grid:
    """Returns timesteps at equal distances, sigma interpolated between them (diffusers' Euler and LMS)."""
    return _even_timesteps(schedule, first, last, points, "sigma")


def time_quadratic(schedule: NoiseSchedule, first: float, last: float, points: int) -> Grid:
    """Returns timesteps whose square roots, counted from 1, are at equal distances (DPM-Solver)."""
    timestep = np.linspace((first + 1) ** 0.5, (last + 1) ** 0.5, points) ** 2 - 1
    return Grid(timestep, schedule.sigma(timestep))


def _of_sigmas(schedule: NoiseSchedule, first: float, last: float, points: int, rho: float, interpolation: str) -> Grid:
    """Returns sigmas whose rho-th roots are at equal distances; at infinite rho, whose logarithms are."""
    high, low = schedule.sigma(np.array([first, last]), interpolation)
    share = np.linspace(0, 1, points)
    if np.isinf(rho):
        sigma = np.exp((1 - share) * np.log(high) + share * np.log(low))
    else:
        sigma = ((1 - share) * high ** (1 / rho) + share * low ** (1 / rho)) ** rho
    return Grid(schedule.timestep(sigma, interpolation), sigma)


def log_snr(schedule: NoiseSchedule, first: float, last: float, points: int) -> Grid:
    """Returns sigmas at equal distances of their logarithms, timesteps by way of log alpha (DPM-Solver)."""
    return _of_sigmas(schedule, first, last, points, np.inf, "log_alpha")


def exponential(schedule: NoiseSchedule, first: float, last: float, points: int) -> Grid:
    """Returns sigmas at equal distances of their logarithms, timesteps by way of log sigma (k-diffusion)."""
    return _of_sigmas(schedule, first, last, points, np.inf, "log_sigma")


def karras(schedule: NoiseSchedule, first: float, last: float, points: int) -> Grid:
    """Returns sigmas whose 7th roots are at equal distances, timesteps by way of log sigma (k-diffusion)."""
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
OF_SIGMA = ("logSNR", "exponential", "karras")  # those even in a measure in which noise alone is infinitely far away


def fitting(spacing: str, schedule: NoiseSchedule) -> str:
    """Returns the spacing to use on a schedule where nobody chose one and `spacing` is the sampler's own.

    "even" leaves the last timestep out, where a schedule with zero terminal SNR holds noise alone. Sampling would start
    from pure noise at a timestep whose latents, as the network knows them, still hold the image's mean, the more so
    the fewer the steps are. "karras" takes too long steps where such a schedule is steep. There "trailing" takes the
    place of both.

    Source: Lin et al. 2023 (arXiv 2305.08891), section 3.3.
    """
    return "trailing" if schedule.config.zero_terminal_snr and spacing in ("even", "karras") else spacing


def from_noise_alone(schedule: NoiseSchedule, timestep: float) -> bool:
    """Returns whether a timestep is the last one of a schedule with zero terminal SNR: noise alone, infinite sigma.

    The number that stands for that sigma is of no meaning. A step from there is exact to first order only,
    x' = x0 + sigma' noise: a difference or a mean over it is dominated by that number.
    """
    return schedule.config.zero_terminal_snr and timestep == schedule.num_timesteps - 1


def after_noise_alone(schedule: NoiseSchedule, num_steps: int) -> float:
    """Returns the timestep at which a first step from noise alone ends, one of "trailing" of so many."""
    return max(schedule.num_timesteps * (1 - 1 / num_steps) - 1, 0.0)


def _range(name: str, schedule: NoiseSchedule, num_steps: int, points: int) -> Grid:
    """Returns that range's points from the last timestep to the first.

    Where the last timestep is noise alone, a range even in a function of sigma would spend most of its steps on what
    lies between the number that stands for its sigma and the first sigma at which something can be seen. Its first step
    there is as long as one of "trailing", and the range begins after it.
    """
    last = schedule.num_timesteps - 1.0
    if not (name in OF_SIGMA and from_noise_alone(schedule, last) and points > 1):
        return RANGES[name](schedule, last, 0.0, points)
    timestep, sigma = RANGES[name](schedule, after_noise_alone(schedule, num_steps), 0.0, points - 1)
    return Grid(np.append(last, timestep), np.append(schedule.sigmas[-1], sigma))


def make_grid(name: str, schedule: NoiseSchedule, num_steps: int, *, end: str, skip: int = 0) -> Grid:
    """Returns the grid of that spacing without its first `skip` steps; every step in it moves.

    `end` "sigma_min" ends at the first timestep's noise, "zero" without noise. A spacing whose last step already starts
    at the first timestep ends without noise in any case.

    Raises ValueError for a number of steps that the schedule or the spacing does not have.
    """
    most = schedule.num_timesteps if name in TIMESTEPS else MAX_STEPS
    num_steps = whole("num_steps", num_steps, 1, most, context=f" with spacing {name!r}")
    if name in TIMESTEPS:
        timestep = TIMESTEPS[name](schedule, num_steps).astype(np.float64)
        sigma = schedule.sigmas[timestep.astype(int)]
    else:
        # One point more where the range's own end is the last step's
        points = num_steps + (end == "sigma_min")
        timestep, sigma = _range(name, schedule, num_steps, points)
        timestep, sigma = timestep[:num_steps], sigma[:num_steps]
    last = schedule.sigmas[0] if end == "sigma_min" and timestep[-1] > 0 else 0.0
    grid = Grid(np.append(timestep, 0.0), np.append(sigma, last))
    if not 0 <= skip < len(timestep):
        raise ValueError(f"the first {skip} of {len(timestep)} steps cannot be left out: one at least must remain")
    return Grid(grid.timestep[skip:], grid.sigma[skip:])
