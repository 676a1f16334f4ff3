"""The start of a run: how many steps a strength leaves, and the first x.

With strength s, the last floor(s n) of n steps are made. Strength 0 makes none: the picture only goes through the
autoencoder. Strength 1 makes all, starting from pure noise like text to image. In between, the first step starts at
its own noise level, x = x0 + sigma noise.

Other tools count in other ways, and also scale the first noise in other ways. `COUNTINGS` has them by name:

| counting | steps made, of | first x |
|---|---|---|
| share | floor(s count), of the steps that the sampler makes | strength 1: pure noise |
| compvis | int(s n) of n, starting with the noise of the step before | strength 1: pure noise |
| diffusers | int(s n) of n | with the latent, at strength 1 too |
| a1111 | int(min(s, 0.999) n) + 1 of n; for DDIM and PLMS 2 less, and the noise of the step before | with the latent |
| a1111_exact | n of int(n / s); for DDIM and PLMS 2 less | with the latent |
| comfyui | n of int(n / s) | with the latent; at the largest sigma the noise is scaled by sqrt(1 + sigma^2) |
| ic_light | int(s count) of round(n / s) | with the latent |

Source: Meng et al. 2022 (arXiv 2108.01073), algorithm 1; scripts/img2img.py and ldm/models/diffusion/ddim.py;
diffusers' StableDiffusionImg2ImgPipeline.get_timesteps; AUTOMATIC1111's sd_samplers_common.setup_img2img_steps;
ComfyUI's KSampler.set_steps and model_sampling.EPS.noise_scaling; IC-Light's gradio_demo.py.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from sdjax.checks.arguments import number
from sdjax.samplers.rows import Rows
from sdjax.samplers.sampler import Sampler, choose
from sdjax.schedule import NoiseSchedule

MOST_STEPS = 10_000


class Start(NamedTuple):
    """The rows to run (None if there are none), and the weights of the latent and of unit noise in the first x.

    `as_it_is`: a result that ends with noise is x itself, as k-diffusion has it, not x / sqrt(1 + sigma^2).
    """

    rows: Rows | None
    of_x0: np.float32
    of_noise: np.float32
    as_it_is: bool = False

    @property
    def needs_x0(self) -> bool:
        """Whether the first x contains the latent."""
        return bool(self.of_x0 != 0)

    @property
    def of_result(self) -> np.float32:
        """The weight of the sampler's result in the latent."""
        if self.rows is None or not self.as_it_is:
            return np.float32(1)
        return np.sqrt(1 + np.asarray(self.rows.sigma_next, np.float32)[-1] ** 2)


@dataclasses.dataclass(frozen=True)
class Counting:
    """A tool's way to start.

    `total(n, s)` is the number of steps of the whole run, and `left(n, s, count, sampler)` how many of its `count` last
    steps are made. `early(sampler)`: whether the first x has the noise of the step before. `pure`: whether strength 1
    starts without the latent. `scale(sampler, sigma, sigma_max)` is the weight of pure noise, None for the sampler's;
    `on_latent`: whether it is also the weight of noise that is added to a latent, which is sigma otherwise.
    """

    total: Callable[[int, float], int]
    left: Callable[[int, float, int, Sampler], int]
    early: Callable[[Sampler], bool] = lambda sampler: False
    pure: bool = False
    scale: Callable[[Sampler, float, float], float] | None = None
    on_latent: bool = False


def _asked(num_steps: int, strength: float) -> int:
    return num_steps


def _more(num_steps: int, strength: float) -> int:
    """Returns so many steps that the share `strength` of them is `num_steps`."""
    return num_steps if strength > 0.9999 else min(int(num_steps / strength), MOST_STEPS)


def _share(num_steps: int, strength: float, count: int, sampler: Sampler) -> int:
    return math.floor(strength * count + 1e-9)  # in floating point 0.29 * 100 is 28.999..., which gives 28 steps


def _truncated(num_steps: int, strength: float, count: int, sampler: Sampler) -> int:
    return int(strength * num_steps)


def _after_cut(num_steps: int, strength: float, count: int, sampler: Sampler) -> int:
    return count - (num_steps - int(strength * num_steps))  # PNDM makes one step more than asked for


def _a1111(num_steps: int, strength: float, count: int, sampler: Sampler) -> int:
    return int(min(strength, 0.999) * num_steps) + (-1 if on_timesteps(sampler) else 1)


def _a1111_exact(num_steps: int, strength: float, count: int, sampler: Sampler) -> int:
    return num_steps - (2 if on_timesteps(sampler) else 0)


def _last(num_steps: int, strength: float, count: int, sampler: Sampler) -> int:
    return num_steps


def on_timesteps(sampler: Sampler) -> bool:
    """Returns whether AUTOMATIC1111 runs this sampler on timesteps (DDIM, PLMS, UniPC) and not on sigmas."""
    return sampler.variance_preserving


def _a1111_scale(sampler: Sampler, sigma: float, sigma_max: float) -> float:
    return (1 + sigma**2) ** 0.5 if on_timesteps(sampler) else sigma


def _comfyui_scale(sampler: Sampler, sigma: float, sigma_max: float) -> float:
    return (1 + sigma**2) ** 0.5 if sigma >= sigma_max * (1 - 1e-5) else sigma


def _exact_total(num_steps: int, strength: float) -> int:
    return min(int(num_steps / strength), MOST_STEPS)


def _rounded_total(num_steps: int, strength: float) -> int:
    return min(max(1, round(num_steps / strength)), MOST_STEPS)


COUNTINGS: dict[str, Counting] = {
    "share": Counting(_asked, _share, pure=True),
    "compvis": Counting(_asked, _truncated, early=lambda sampler: True, pure=True),
    "diffusers": Counting(_asked, _after_cut),
    "a1111": Counting(_asked, _a1111, early=on_timesteps, scale=_a1111_scale),
    "a1111_exact": Counting(_exact_total, _a1111_exact, early=on_timesteps, scale=_a1111_scale),
    "comfyui": Counting(_more, _last, scale=_comfyui_scale, on_latent=True),
    "ic_light": Counting(_rounded_total, _share),
}


def make_start(
    sampler: Sampler,
    schedule: NoiseSchedule,
    num_steps: int,
    strength: float | None = None,
    *,
    counting: str = "share",
) -> Start:
    """Returns the start of a run of `num_steps` steps. `strength` is from 0 to 1; None means that there is no latent.

    `counting` is a name of COUNTINGS. Raises ValueError for a strength out of range, an unknown counting, and whenever
    the sampler's `steps` does.
    """
    choose("strength_counting", counting, COUNTINGS)
    way = COUNTINGS[counting]
    if strength is not None:
        strength = number("strength", strength, 0, 1, " (0 keeps the picture, 1 starts from pure noise)")
    if strength == 0:
        return Start(None, np.float32(1), np.float32(0))
    total = num_steps if strength is None else way.total(num_steps, strength)
    try:
        sigma = sampler.grid(schedule, total).sigma
    except ValueError as error:
        if total == num_steps:
            raise
        raise ValueError(
            f"strength {strength:g} of {num_steps} steps is the end of {total} steps, with strength_counting "
            f"{counting}: {error}"
        ) from None
    count = len(sigma) - 1
    left = count if strength is None else min(way.left(num_steps, strength, count, sampler), count)
    if left <= 0:
        return Start(None, np.float32(1), np.float32(0))
    skip = count - left
    rows = sampler.steps(schedule, total, skip=skip)
    if skip == 0 and (strength is None or way.pure):
        one: Any = np.ones(1, np.float32)  # NumPy's, because each operation of jnp would be a program
        of_noise = float(sampler.initial(one, rows)[0])
        if way.scale is not None:
            of_noise = way.scale(sampler, float(sigma[0]), float(schedule.sigmas[-1]))
        return Start(rows, np.float32(0), np.float32(of_noise))
    if skip and way.early(sampler):
        # Their latent is variance-preserving. It has the noise of the step before `skip`, but is used as if it had that
        # of `skip`
        of_x0 = ((1 + sigma[skip] ** 2) / (1 + sigma[skip - 1] ** 2)) ** 0.5
        return Start(rows, np.float32(of_x0), np.float32(of_x0 * sigma[skip - 1]))
    of_noise = float(sigma[skip])
    if way.scale is not None and way.on_latent:
        of_noise = way.scale(sampler, of_noise, float(schedule.sigmas[-1]))
    return Start(rows, np.float32(1), np.float32(of_noise))
