"""Linear multistep samplers, which remember epsilon: PLMS, PNDM and LMS."""

import dataclasses
from typing import ClassVar

import numpy as np
from numpy.polynomial import Polynomial, polynomial

from sdjax.samplers.rows import Rows, row, stack
from sdjax.samplers.sampler import End, Sampler, check_order
from sdjax.samplers.schedules import Schedule
from sdjax.samplers.spacing import Grid, from_noise_alone
from sdjax.schedule import PREDICTIONS, NoiseSchedule

# Adams-Bashforth weights of order 1 to 4, newest first
ADAMS_BASHFORTH = (
    np.array([1.0]),
    np.array([3.0, -1.0]) / 2,
    np.array([23.0, -16.0, 5.0]) / 12,
    np.array([55.0, -59.0, 37.0, -9.0]) / 24,
)

UNEVEN = 1.4  # a step that is so many times as long as the next one is too long for Adams-Bashforth


def pseudo_multistep(schedule: NoiseSchedule, grid: Grid, remember: str) -> Rows:
    """Returns the rows of PLMS: Adams-Bashforth over the remembered outputs, after a first step like Heun's.

    The outputs are remembered as `remember`. Their combination is converted to epsilon at the start of the step, and
    x' = x + (sigma' - sigma) epsilon. The first step calls the network twice, at its start and its end, and takes the
    mean; later steps do not use the second call. N steps make N + 1 rows. With zero terminal SNR the first steps are
    Euler's (`uneven`); if all steps are, N steps make N rows.

    Source: Liu et al. 2022 (arXiv 2202.09778), eq. 9 and 12; ldm/models/diffusion/plms.py.
    """
    first = uneven(schedule, grid)
    rows = []
    for t, sigma, sigma_next in zip(grid.timestep[:first], grid.sigma, grid.sigma[1:]):
        rows.append(row(t, sigma, sigma_next, base=sigma_next / sigma, calls=[1 - sigma_next / sigma]))
    t, sigma = (values[first:] for values in grid)
    n = len(t) - 1
    if n == 0:
        return stack(rows)

    def leg(i: int, weights: np.ndarray) -> dict:
        # epsilon = (x - x0) / sigma with x0 = of_x x + of_out e'
        of_x, of_out = PREDICTIONS[remember].x0(sigma[i])
        slope = (sigma[i + 1] - sigma[i]) / sigma[i]
        return {"base": 1 + slope * (1 - of_x), "calls": -slope * of_out * weights, "remember": remember}

    rows.append(row(t[0], sigma[0], sigma[1], **leg(0, ADAMS_BASHFORTH[0])))
    if sigma[1] > 0:  # a network cannot be called with an image without noise
        rows.append(row(t[1], sigma[1], sigma[1], **leg(0, np.array([0.5, 0.5])), starts_step=False))
    for i in range(1, n):
        weights = ADAMS_BASHFORTH[min(i, 3)]
        if i <= 3:  # the window still includes the first step, whose second call must be skipped
            weights = np.insert(weights, -1, 0.0)
        rows.append(row(t[i], sigma[i], sigma[i + 1], **leg(i, weights)))
    return stack(rows)


def uneven(schedule: NoiseSchedule, grid: Grid) -> int:
    """Returns how many of the first steps are too uneven for Adams-Bashforth; 0 without zero terminal SNR.

    Its weights are for steps of equal length. After pure noise sigma falls as 1/1, 1/2, 1/3, ...: the first steps are
    up to three times as long as the next ones, and differences between outputs would get far too large weights.
    """
    if not schedule.config.zero_terminal_snr:
        return 0
    lengths = -np.diff(grid.sigma)
    first = 0
    while first < len(lengths) and (
        from_noise_alone(schedule, grid.timestep[first])
        or (first + 1 < len(lengths) and lengths[first] > UNEVEN * lengths[first + 1])
    ):
        first += 1
    return first


@dataclasses.dataclass(frozen=True)
class PLMS(Sampler):
    """PLMS. All network outputs are converted to epsilon before those of several steps are combined."""

    def rows(self, schedule: NoiseSchedule, grid: Grid) -> Rows:
        """Returns one row per step, and one more."""
        return pseudo_multistep(schedule, grid, "epsilon")


@dataclasses.dataclass(frozen=True)
class PNDM(Sampler):
    """PLMS as in diffusers' PNDMScheduler with skip_prk_steps: it combines the raw outputs of the network.

    For models that predict epsilon it equals PLMS; for v and x0 it is another method.
    """

    def rows(self, schedule: NoiseSchedule, grid: Grid) -> Rows:
        """Returns one row per step, and one more."""
        return pseudo_multistep(schedule, grid, schedule.config.prediction)


def lms_weights(sigma: np.ndarray, i: int, order: int) -> np.ndarray:
    """Returns the integrals from sigma[i] to sigma[i + 1] of the Lagrange polynomials through the last `order` sigmas.

    The integral for sigma[i] comes first. The integrals are exact; the references use quadrature.
    """
    nodes = sigma[i - order + 1 : i + 1][::-1] - sigma[i]  # counted from sigma[i]: no cancellation in the integral
    weights = []
    for j, node in enumerate(nodes):
        others = np.delete(nodes, j)
        integral = Polynomial(polynomial.polyfromroots(others)).integ()
        weights.append(integral(sigma[i + 1] - sigma[i]) / np.prod(node - others))
    return np.array(weights)


@dataclasses.dataclass(frozen=True)
class LMS(Sampler):
    """Linear multistep in sigma: x' = x + sum_j w_j epsilon_j, where w_j are the integrals of `lms_weights`.

    With `ends_in_x0` a last step that ends without noise takes the network's x0, as in ComfyUI.

    Source: k-diffusion's sample_lms; LMSDiscreteScheduler; ComfyUI's lms.
    """

    spacing: str | Schedule = "linspace"
    end: End = "zero"
    order: int = 4
    ends_in_x0: bool = False
    variance_preserving: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_order(self.order, 4)

    def rows(self, schedule: NoiseSchedule, grid: Grid) -> Rows:
        """Returns one row per step."""
        t, sigma = grid
        rows = []
        for i in range(len(t) - 1):
            order = 1 if self.ends_in_x0 and sigma[i + 1] == 0 else min(i + 1, self.order)
            weights = lms_weights(sigma, i, order)
            rows.append(row(t[i], sigma[i], sigma[i + 1], calls=weights, remember="epsilon"))
        return stack(rows)
