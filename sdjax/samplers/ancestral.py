"""Samplers of first order: DDIM with any eta, ancestral DDPM, Euler with churn, Euler ancestral, LCM; CFG++ forms.

In x = x0 + sigma noise they all make the same step: go down to a noise level below the next one, then add fresh noise
up to the next one. They differ in their defaults and in how far they go down.
"""

import dataclasses
from typing import ClassVar

import numpy as np

from sdjax.checks.effects import needs, note_effects
from sdjax.samplers.churn import Churned
from sdjax.samplers.rows import Rows, row, stack
from sdjax.samplers.sampler import End, Sampler, check_eta, check_numbers
from sdjax.samplers.schedules import Schedule
from sdjax.samplers.spacing import Grid
from sdjax.schedule import NoiseSchedule


def split_noise(sigma: float, sigma_next: float, eta: float) -> tuple[float, float]:
    """Returns (down, up) with down^2 + up^2 = sigma_next^2: the noise to keep and the fresh noise to add.

    up = eta sigma_next sqrt(1 - (sigma_next / sigma)^2) is DDIM's sigma_t(eta) divided by sqrt(alphas_cumprod) of the
    next timestep. With eta 1 it is the deviation of DDPM's posterior; it never exceeds sigma_next.

    Source: Song et al. 2021 (arXiv 2010.02502), eq. 16.
    """
    up = min(sigma_next, eta * sigma_next * np.sqrt(1 - (sigma_next / sigma) ** 2))
    return np.sqrt(sigma_next**2 - up**2), up


def first_order(
    timestep: float,
    sigma: float,
    sigma_next: float,
    *,
    eta: float = 0.0,
    s_noise: float = 1.0,
    cfg_pp: bool = False,
    brownian: bool = False,
) -> Rows:
    """Returns the row x' = x0 + down epsilon + s_noise up z. CFG++ takes the unconditional epsilon."""
    down, up = split_noise(sigma, sigma_next, eta)
    keep = down / sigma
    calls, remember = ([1.0], (0.0, 1.0, -keep)) if cfg_pp else ([1 - keep], (0.0, 1.0, 0.0))
    return row(
        timestep, sigma, sigma_next, base=keep, calls=calls, remember=remember, noise=s_noise * up, brownian=brownian
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class AddsNoise(Sampler):
    """The base of samplers whose steps may add noise: `eta` says how much, and `s_noise` multiplies it."""

    eta: float = 0.0
    s_noise: float = needs(1.0, lambda s: s.eta > 0, "with eta 0")
    variance_preserving: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_eta(self.eta)
        check_numbers(self, "s_noise")
        note_effects(self)


@dataclasses.dataclass(frozen=True)
class DDIM(Sampler):
    """DDIM: deterministic with eta 0, as noisy as DDPM with eta 1.

    x' = x0 + down * epsilon + up * z.

    With `cfg_pp` (CFG++) epsilon is that of the unconditional branch, (x - x0_unconditional) / sigma, so that guidance
    moves x0 only. Its guidance scales are near 1.

    Source: Song et al. 2021 (arXiv 2010.02502), eq. 12; ldm/models/diffusion/ddim.py; for CFG++ Chung et al. 2024
    (arXiv 2406.08070), algorithm 2.
    """

    eta: float = 0.0
    cfg_pp: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_eta(self.eta)

    @property
    def uses_unconditional(self) -> bool:
        """Whether the steps use the unconditional x0."""
        return self.cfg_pp

    def rows(self, schedule: NoiseSchedule, grid: Grid) -> Rows:
        """Returns one row per step."""
        t, sigma = grid
        return stack([
            first_order(t[i], sigma[i], sigma[i + 1], eta=self.eta, cfg_pp=self.cfg_pp) for i in range(len(t) - 1)
        ])  # fmt: skip


@dataclasses.dataclass(frozen=True)
class DDPM(DDIM):
    """Ancestral sampling of DDPM with the posterior's variance. The last step ends without noise.

    It is DDIM with eta 1. Source: Ho et al. 2020 (arXiv 2006.11239), algorithm 2 and eq. 7; ldm's p_sample_loop.
    """

    end: End = "zero"
    eta: float = 1.0


@dataclasses.dataclass(frozen=True)
class Euler(Churned, DDIM):
    """Euler's method in sigma, with churn, or its ancestral form with eta 1. Start and spacing are k-diffusion's.

    x' = x_hat + (sigma_down - sigma_hat) epsilon + s_noise sigma_up z.

    Source: Karras et al. 2022 (arXiv 2206.00364), algorithm 2 without its second-order correction; k-diffusion's
    sample_euler and sample_euler_ancestral; ComfyUI's sample_euler_ancestral_cfg_pp.
    """

    spacing: str | Schedule = "linspace"

    def rows(self, schedule: NoiseSchedule, grid: Grid) -> Rows:
        """Returns one row per step."""
        t, sigma = grid
        n = len(t) - 1
        rows = []
        for i in range(n):
            start = self.churn(schedule, t[i], sigma[i], n)
            step = first_order(
                start.timestep, start.sigma, sigma[i + 1], eta=self.eta, s_noise=self.s_noise, cfg_pp=self.cfg_pp
            )
            rows.append(start.begin(step))
        return stack(rows)


def boundary(t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns c_skip and c_out of latent consistency at timesteps, which make f(x, 0) = x.

    The data's standard deviation is 0.5 in them, and timesteps are multiplied by ten. Source: Luo et al. 2023 (arXiv
    2310.04378), appendix.
    """
    scaled = (10 * t) ** 2
    return 0.25 / (scaled + 0.25), 10 * t / np.sqrt(scaled + 0.25)


@dataclasses.dataclass(frozen=True)
class LCM(Sampler):
    """Few-step sampling of latent consistency models: jump to f(x), add fresh noise, jump again.

    x' = c_skip x / sqrt(1 + sigma^2) + c_out x0 + sigma' z

    The boundary condition f(x) = c_skip x + c_out x0 of the consistency function mixes the model's output with its
    input. In it the data's standard deviation is 0.5 and timesteps are multiplied by ten. Without `boundary`, f(x) is
    x0, as in ComfyUI. Needs weights distilled for it.

    Source: Luo et al. 2023 (arXiv 2310.04378), algorithm 3 and its appendix; diffusers' LCMScheduler; ComfyUI's
    sample_lcm.
    """

    spacing: str = "lcm"
    end: End = "zero"
    boundary: bool = True

    def rows(self, schedule: NoiseSchedule, grid: Grid) -> Rows:
        """Returns one row per step."""
        t, sigma = grid
        c_skip, c_out = boundary(t) if self.boundary else (np.zeros_like(t), np.ones_like(t))
        c_skip = c_skip / np.sqrt(1 + sigma**2)  # the paper's condition is for the variance-preserving x
        rows = [
            row(t[i], sigma[i], sigma[i + 1], base=c_skip[i], calls=[c_out[i]], noise=sigma[i + 1])
            for i in range(len(t) - 1)
        ]
        return stack(rows)
