"""How much an error counts: by its size (l2, Huber and others), and by its timestep (min-SNR, debiased and others)."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sdjax.schedule import NoiseSchedule

if TYPE_CHECKING:
    from sdjax.train.objectives.diffusion import DiffusionObjective

MOST_SNR = 1000.0  # of the weights other than min-SNR's: at the first timesteps the ratio grows without bound


def bend(error: jax.Array, delta: jax.Array) -> jax.Array:
    """Returns the pseudo-Huber error, sqrt(error^2 + delta^2) - delta, without cancellation."""
    return jnp.square(error) / (jnp.sqrt(jnp.square(error) + jnp.square(delta)) + delta)


# Of (error [b, h, w, c], delta [b, 1, 1, 1]), entry by entry. The last two are Charbonnier et al.'s (1997, equation
# 36), in the scales of kohya-ss/sd-scripts: near 0 they are error^2 and error^2 / delta
ERRORS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "l2": lambda error, delta: jnp.square(error),
    "l1": lambda error, delta: jnp.abs(error),
    "huber": lambda error, delta: optax.losses.huber_loss(error, delta=delta),
    "pseudo_huber": lambda error, delta: 2 * delta * bend(error, delta),
    "smooth_l1": lambda error, delta: 2 * bend(error, delta),
}
HUBERS = ("huber", "pseudo_huber", "smooth_l1")  # those that use delta


def huber_deltas(schedule: NoiseSchedule, delta: float, how: str) -> np.ndarray:
    """Returns where a Huber loss bends, at each timestep, float32 [T].

    - "constant": `delta`.
    - "exponential": delta^(t / T): from 1 at the first timestep to `delta` after the last.
    - "snr": delta + (1 - delta) / (1 + sigma)^2, with sigma^2 = 1 / SNR.

    Source: kohya-ss/sd-scripts (library/train_util.py, --huber_schedule).
    """
    total, a = schedule.num_timesteps, schedule.alphas_cumprod
    if how == "exponential":
        return (delta ** (np.arange(total) / total)).astype(np.float32)
    if how == "snr":
        with np.errstate(divide="ignore"):  # sigma is infinite with zero terminal SNR
            return (delta + (1 - delta) / (1 + np.sqrt((1 - a) / a)) ** 2).astype(np.float32)
    return np.full(total, delta, np.float32)


def snr_weights(snr: np.ndarray, gamma: float | None, prediction: str, floor: float = 0.0) -> np.ndarray:
    """Returns the loss's weight at each signal-to-noise ratio, for a squared error in what the network predicts.

    In terms of x0 the weight is min(SNR, gamma) (Hang et al. 2023, arXiv 2303.09556), and at least `floor`. A floor of
    1 is the truncated weighting of Salimans & Ho 2022 (arXiv 2202.00512) for v and x0. The floor matters at the
    noisiest timesteps. There the network sets properties such as a background's colour, which noise never hides
    completely in training, but which the sampler's pure noise does not contain. With zero terminal SNR the weight would
    be 0 there. Without `gamma` all weights are 1.
    """
    if gamma is None:
        return np.ones_like(snr)
    return np.clip(snr, floor, gamma) / {"x0": 1.0, "v": snr + 1.0, "epsilon": snr}[prediction]


def timestep_weights(schedule: NoiseSchedule, objective: "DiffusionObjective", prediction: str) -> np.ndarray:
    """Returns the weight of the error at each timestep, float32 [T]: the product of what the objective asks for.

    With s the SNR, at most 1000:

    - min-SNR: see `snr_weights`.
    - `like_epsilon`: s / (s + 1), which makes an error of v count as one of epsilon.
    - `v_like`: 1 + v_like (s + 1) / s, which adds the error of epsilon as one of v.
    - `debiased`: 1 / sqrt(s) for epsilon, sqrt(s) for x0 (the same error), and 1 / (s + 1) for v.

    Sources: debiased: Yu et al. 2023 (arXiv 2310.08442); its form for v, and the others: kohya-ss/sd-scripts
    (library/custom_train_functions.py).
    """
    a = schedule.alphas_cumprod
    snr = a / (1 - a)
    weights, s = snr_weights(snr, objective.gamma, prediction, objective.floor), np.minimum(snr, MOST_SNR)
    if objective.like_epsilon:
        weights = weights * s / (s + 1)
    if objective.v_like:
        weights = weights * (1 + objective.v_like * (s + 1) / s)
    if objective.debiased:
        weights = weights * {"epsilon": 1 / np.sqrt(s), "x0": np.sqrt(s), "v": 1 / (s + 1)}[prediction]
    return weights.astype(np.float32)
