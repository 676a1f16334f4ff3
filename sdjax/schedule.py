"""The noise schedule: the shares of image and noise at each timestep.

DDPM's process is variance-preserving: x_t = sqrt(a_t) x0 + sqrt(1 - a_t) noise with a = alphas_cumprod. Here it is
divided by sqrt(a_t): x = x0 + sigma noise, sigma = sqrt((1 - a) / a). All samplers work with this x.

All tables are float64 numpy arrays on the host (float32 cumulative products drift by 2e-6). Compiled programs get their
values as rows of float32.

Source: Ho et al. 2020 (arXiv 2006.11239); ldm/modules/diffusionmodules/util.py:make_beta_schedule; for zero terminal
SNR Lin et al. 2023 (arXiv 2305.08891); between timesteps Lu et al. 2022 (arXiv 2206.00927), code of NoiseScheduleVP.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.config import ScheduleConfig
from sdjax.typing import Latent

ZERO_SNR_ALPHA = 2.0**-24  # alphas_cumprod where it should be 0: keeps sigma finite (4096), as diffusers does
# The last alphas_cumprod of a rescaled schedule in other tools; AUTOMATIC1111's and ComfyUI's sigma is 4518
LAST_ALPHAS = {"diffusers": ZERO_SNR_ALPHA, "a1111": 4.8973451890853435e-08, "comfyui": 4.8973451890853435e-08}

Numbers: TypeAlias = np.ndarray | jax.Array | float


class Weights(NamedTuple):
    """The two numbers of a linear combination."""

    first: Numbers
    second: Numbers


class PredictionWeights(NamedTuple):
    """A prediction type as weights. `x0(sigma)` are the weights of x and of the network's output in x0, where
    x = x0 + sigma noise. `target(sigma)` are the weights of x0 and of the noise in the training target.
    """

    x0: Callable[[Numbers], Weights]
    target: Callable[[Numbers], Weights]


def _v_x0(sigma: Numbers) -> Weights:
    return Weights(1 / (1 + sigma**2), -sigma / (1 + sigma**2) ** 0.5)


def _v_target(sigma: Numbers) -> Weights:
    return Weights(-sigma / (1 + sigma**2) ** 0.5, 1 / (1 + sigma**2) ** 0.5)


# v = sqrt(a) noise - sqrt(1 - a) x0: Salimans & Ho 2022 (arXiv 2202.00512)
PREDICTIONS: dict[str, PredictionWeights] = {
    "epsilon": PredictionWeights(x0=lambda sigma: Weights(1.0, -sigma), target=lambda sigma: Weights(0.0, 1.0)),
    "v": PredictionWeights(x0=_v_x0, target=_v_target),
    "x0": PredictionWeights(x0=lambda sigma: Weights(0.0, 1.0), target=lambda sigma: Weights(1.0, 0.0)),
}


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


@functools.lru_cache(maxsize=16)
def alphas_cumprod(config: ScheduleConfig, last_alpha: float | None = None) -> np.ndarray:
    """Returns a_t, the share of the image's variance left at each timestep, float64 [num_timesteps], decreasing.

    `last_alpha` rescales any schedule to zero terminal SNR, with this number in place of the last 0.
    """
    a = np.cumprod(1 - betas(config))
    if config.zero_terminal_snr or last_alpha is not None:
        a = rescaled(a, ZERO_SNR_ALPHA if last_alpha is None else last_alpha)
    a.setflags(write=False)
    return a


def rescaled(a: np.ndarray, last_alpha: float) -> np.ndarray:
    """Returns a_t for zero terminal SNR, with `last_alpha` in the place of the last 0."""
    root = np.sqrt(a)  # shifted and stretched so that it ends at 0; its first value stays
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    out = root**2
    out[-1] = last_alpha
    return out


def _interpolate(x: np.ndarray, xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
    """Returns ys at x, linearly interpolated between the rising xs and extrapolated outside them."""
    i = np.clip(np.searchsorted(xs, x) - 1, 0, len(xs) - 2)
    share = (x - xs[i]) / (xs[i + 1] - xs[i])
    return ys[i] + share * (ys[i + 1] - ys[i])


# Between whole timesteps the references interpolate differently: linearly in log alpha (DPM-Solver), in log sigma
# (k-diffusion) or in sigma (diffusers' Euler and LMS). Each entry: the function of sigma, and its inverse.
INTERPOLATIONS: dict[str, tuple[Callable, Callable]] = {
    "log_alpha": (lambda sigma: 0.5 * np.log1p(sigma**2), lambda y: np.sqrt(np.expm1(2 * y))),  # y = -log alpha
    "log_sigma": (np.log, np.exp),
    "sigma": (lambda sigma: sigma, lambda y: y),
}


@dataclasses.dataclass(frozen=True)
class NoiseSchedule:
    """Tables of one schedule, and conversions between timestep and sigma.

    Timesteps are 0 ... num_timesteps - 1. They may be fractional; values outside this range are extrapolated.
    `last_alpha` rescales the schedule to zero terminal SNR (`alphas_cumprod`), whatever the model was trained with.
    """

    config: ScheduleConfig = ScheduleConfig()
    last_alpha: float | None = None

    @property
    def num_timesteps(self) -> int:
        """The number of timesteps the model was trained on."""
        return self.config.num_timesteps

    @property
    def alphas_cumprod(self) -> np.ndarray:
        """a_t, float64 [num_timesteps]."""
        return alphas_cumprod(self.config, self.last_alpha)

    @property
    def sigmas(self) -> np.ndarray:
        """sigma_t = sqrt((1 - a_t) / a_t), float64 [num_timesteps], increasing."""
        a = self.alphas_cumprod
        return np.sqrt((1 - a) / a)

    def sigma(self, timestep: np.ndarray | float, interpolation: str = "log_alpha") -> np.ndarray:
        """Returns sigma at (fractional) timesteps, float64; `interpolation` is a name of INTERPOLATIONS."""
        forward, inverse = INTERPOLATIONS[interpolation]
        timestep = np.asarray(timestep, np.float64)
        return inverse(_interpolate(timestep, np.arange(self.num_timesteps, dtype=np.float64), forward(self.sigmas)))

    def timestep(self, sigma: np.ndarray | float, interpolation: str = "log_alpha") -> np.ndarray:
        """Returns the (fractional) timesteps of sigmas above 0, float64: the inverse of `sigma`."""
        forward, _ = INTERPOLATIONS[interpolation]
        sigma = np.asarray(sigma, np.float64)
        return _interpolate(forward(sigma), forward(self.sigmas), np.arange(self.num_timesteps, dtype=np.float64))

    def nearest_timestep(self, sigma: np.ndarray | float) -> np.ndarray:
        """Returns the whole timesteps whose log sigma is nearest, float64. Source: ComfyUI's ModelSamplingDiscrete."""
        exact = np.clip(self.timestep(sigma, "log_sigma"), 0, self.num_timesteps - 1)
        below = np.floor(exact)
        above = np.minimum(below + 1, self.num_timesteps - 1)
        log_sigma, table = np.log(np.asarray(sigma, np.float64)), np.log(self.sigmas)
        nearer = np.abs(table[above.astype(int)] - log_sigma) < np.abs(table[below.astype(int)] - log_sigma)
        return np.where(nearer, above, below)

    def add_noise(self, x0: Latent, noise: Latent, timestep: jax.Array) -> Latent:
        """Returns sqrt(a_t) x0 + sqrt(1 - a_t) noise, the network's input in training. timestep: int [b] or scalar."""
        a = self.alphas_cumprod
        return of_table(np.sqrt(a), timestep, x0) * x0 + of_table(np.sqrt(1 - a), timestep, x0) * noise

    def target(self, x0: Latent, noise: Latent, timestep: jax.Array) -> Latent:
        """Returns the network's target output for `add_noise(x0, noise, timestep)`. timestep: int [b] or scalar."""
        of_x0, of_noise = (
            np.broadcast_to(w, self.num_timesteps) for w in PREDICTIONS[self.config.prediction].target(self.sigmas)
        )
        return of_table(of_x0, timestep, x0) * x0 + of_table(of_noise, timestep, x0) * noise


def of_table(table: np.ndarray, timestep: jax.Array, like: jax.Array) -> jax.Array:
    """Returns the table's float32 entries at the timesteps, shaped to multiply a batch."""
    values = jnp.asarray(table, jnp.float32)[timestep]
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim)) if values.ndim else values
