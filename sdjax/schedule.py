"""The noise schedule: how much of the image and how much noise a noisy image holds at each timestep.

The variance-preserving process of DDPM, x_t = sqrt(a_t) x0 + sqrt(1 - a_t) noise with a = alphas_cumprod, is seen here
after division by sqrt(a_t): x = x0 + sigma noise, sigma = sqrt((1 - a) / a). Samplers live in that space.

All tables are float64 numpy arrays on the host (float32 cumulative products drift by 2e-6); compiled programs get their
values as rows of float32.

Source: Ho et al. 2020 (arXiv 2006.11239); ldm/modules/diffusionmodules/util.py:make_beta_schedule; for zero terminal SNR
Lin et al. 2023 (arXiv 2305.08891); for log alpha between timesteps Lu et al. 2022 (arXiv 2206.00927), NoiseScheduleVP.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.config import ScheduleConfig

ZERO_SNR_ALPHA = 2.0**-24  # alphas_cumprod where it should be 0: keeps sigma finite (4096), as diffusers does


def betas(config: ScheduleConfig) -> np.ndarray:
    """Returns the per-timestep noise variances beta_t, float64 [num_timesteps]."""
    t = config.num_timesteps
    if config.kind == "squaredcos":

        def alpha_bar(u: np.ndarray) -> np.ndarray:
            return np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2

        i = np.arange(t, dtype=np.float64)
        return np.minimum(1 - alpha_bar((i + 1) / t) / alpha_bar(i / t), 0.999)
    if config.kind == "linear":
        return np.linspace(config.beta_start, config.beta_end, t, dtype=np.float64)
    return np.linspace(config.beta_start**0.5, config.beta_end**0.5, t, dtype=np.float64) ** 2


def alphas_cumprod(config: ScheduleConfig) -> np.ndarray:
    """Returns a_t, the share of the image's variance left at each timestep, float64 [num_timesteps], decreasing."""
    a = np.cumprod(1 - betas(config))
    if config.zero_terminal_snr:  # shift and stretch sqrt(a) so that it ends at 0 and still starts where it did
        root = np.sqrt(a)
        root = (root - root[-1]) * root[0] / (root[0] - root[-1])
        a = root**2
        a[-1] = ZERO_SNR_ALPHA
    return a


@dataclasses.dataclass(frozen=True)
class NoiseSchedule:
    """Tables of one schedule and the conversions between timestep, sigma and half log SNR (lambda = -log sigma).

    Timesteps are 0 ... num_timesteps - 1; fractional ones are allowed everywhere.
    """

    config: ScheduleConfig = ScheduleConfig()

    @property
    def num_timesteps(self) -> int:
        """The number of timesteps the model was trained on."""
        return self.config.num_timesteps

    @property
    def alphas_cumprod(self) -> np.ndarray:
        """a_t, float64 [num_timesteps]."""
        return alphas_cumprod(self.config)

    @property
    def sigmas(self) -> np.ndarray:
        """sigma_t = sqrt((1 - a_t) / a_t), float64 [num_timesteps], increasing."""
        a = self.alphas_cumprod
        return np.sqrt((1 - a) / a)
