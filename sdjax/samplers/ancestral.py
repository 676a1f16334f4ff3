"""Samplers of first order: DDIM with any eta, ancestral DDPM, Euler, Euler ancestral, LCM.

In x = x0 + sigma noise they all make the same step: go down to a noise level below the next one, then add fresh noise
up to the next one. They differ in their defaults and in how far they go down.
"""

import dataclasses
from typing import ClassVar

import numpy as np

from sdjax.samplers.rows import Rows, row, stack
from sdjax.samplers.sampler import End, Sampler, check_eta
from sdjax.schedule import NoiseSchedule


def split_noise(sigma: float, sigma_next: float, eta: float) -> tuple[float, float]:
    """Returns (down, up) with down^2 + up^2 = sigma_next^2: the noise to keep and the fresh noise to add.

    up = eta sigma_next sqrt(1 - (sigma_next / sigma)^2) is DDIM's sigma_t(eta) divided by sqrt(alphas_cumprod) of the
    next timestep. With eta 1 it is the deviation of DDPM's posterior; it never exceeds sigma_next.

    Source: Song et al. 2021 (arXiv 2010.02502), eq. 16.
    """
    up = min(sigma_next, eta * sigma_next * np.sqrt(1 - (sigma_next / sigma) ** 2))
    return np.sqrt(sigma_next**2 - up**2), up


@dataclasses.dataclass(frozen=True)
class DDIM(Sampler):
    """DDIM: deterministic with eta 0, as noisy as DDPM with eta 1.

    x' = x0 + down * epsilon + up * z.

    Source: Song et al. 2021 (arXiv 2010.02502), eq. 12; ldm/models/diffusion/ddim.py.
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_eta(self.eta)

    def steps(self, schedule: NoiseSchedule, num_steps: int, *, skip: int = 0) -> Rows:
        """Returns one row per step."""
        t, sigma = self.grid(schedule, num_steps, skip=skip)
        rows = []
        for i in range(len(t) - 1):
            down, up = split_noise(sigma[i], sigma[i + 1], self.eta)
            keep = down / sigma[i]
            rows.append(row(t[i], sigma[i], sigma[i + 1], base=keep, calls=[1 - keep], noise=up))
        return stack(rows)


@dataclasses.dataclass(frozen=True)
class DDPM(DDIM):
    """Ancestral sampling of DDPM with the posterior's variance. The last step ends without noise.

    It is DDIM with eta 1. Source: Ho et al. 2020 (arXiv 2006.11239), algorithm 2 and eq. 7; ldm's p_sample_loop.
    """

    end: End = "zero"
    eta: float = 1.0


@dataclasses.dataclass(frozen=True)
class Euler(DDIM):
    """Euler's method in sigma, or its ancestral form with eta 1. Start and spacing are k-diffusion's and diffusers'.

    Source: Karras et al. 2022 (arXiv 2206.00364), algorithm 1 without churn; k-diffusion's sample_euler_ancestral.
    """

    spacing: str = "linspace"
    end: End = "zero"
    variance_preserving: ClassVar[bool] = False


@dataclasses.dataclass(frozen=True)
class LCM(Sampler):
    """Few-step sampling of latent consistency models: jump to x0, add fresh noise, jump again.

    The boundary condition of the consistency function mixes the model's output with its input. In it the data's
    standard deviation is 0.5 and timesteps are multiplied by ten. Needs weights distilled for it.

    Source: Luo et al. 2023 (arXiv 2310.04378), algorithm 3 and its appendix; diffusers' LCMScheduler.
    """

    spacing: str = "lcm"
    end: End = "zero"

    def steps(self, schedule: NoiseSchedule, num_steps: int, *, skip: int = 0) -> Rows:
        """Returns one row per step."""
        t, sigma = self.grid(schedule, num_steps, skip=skip)
        rows = []
        for i in range(len(t) - 1):
            c_skip = 0.25 / ((10 * t[i]) ** 2 + 0.25)
            c_out = 10 * t[i] / np.sqrt((10 * t[i]) ** 2 + 0.25)
            c_skip /= np.sqrt(1 + sigma[i] ** 2)  # the paper's condition is for the variance-preserving x
            rows.append(row(t[i], sigma[i], sigma[i + 1], base=c_skip, calls=[c_out], noise=sigma[i + 1]))
        return stack(rows)
