"""UniPC: each call of the network corrects the previous step, and then predicts the next one."""

import dataclasses
import math
from typing import Literal

import numpy as np

from sdjax.checks.arguments import number
from sdjax.samplers.rows import Rows, row, stack
from sdjax.samplers.sampler import End, Sampler, check_order, choose
from sdjax.samplers.schedules import Schedule
from sdjax.samplers.spacing import Grid
from sdjax.schedule import NoiseSchedule

VARIANTS = ("bh1", "bh2")
PREDICTS = ("x0", "epsilon")


def unified_weights(
    sigma: np.ndarray, i: int, order: int, *, corrected: bool, variant: str = "bh2", predict: str = "x0"
) -> np.ndarray:
    """Returns the weights of m at entries i + 1, i, i - 1, ... in the step from sigma[i] to sigma[i + 1].

    With the papers' letters, h the step in lambda, k = -h for x0 and k = h for epsilon, the step is

        x' = A x - B (m_0 (e^k - 1) + B(h) sum_j rho_j (m_j - m_0) / r_j),    r_j = (lambda_j - lambda_0) / h,

    with A = sigma' / sigma, B = 1 for x0, and A = 1, B = sigma' for epsilon. B(h) is k ("bh1") or e^k - 1 ("bh2"). The
    sum is over the `order` - 1 entries before entry i, and over entry i + 1 if `corrected`. The rho_j solve
    sum_j rho_j r_j^(n - 1) = n! h phi_{n + 1}(k) / B(h), n = 1, 2, ...; a single rho is 1/2, as the paper proposes.
    """
    weights = np.zeros(order + 1)
    if sigma[i + 1] == sigma[i]:
        return weights  # a step of length 0
    if sigma[i + 1] == 0:  # only to first order, and for x0
        weights[1] = 1.0
        return weights
    ratio = sigma[i + 1] / sigma[i]
    k, scale = (np.log(ratio), 1.0) if predict == "x0" else (-np.log(ratio), sigma[i + 1])
    weights[1] = -scale * np.expm1(k)
    places = np.array([i - j for j in range(1, order)] + [i + 1] * corrected, int)
    if len(places) == 0:
        return weights
    of_step = k if variant == "bh1" else np.expm1(k)
    r = (np.log(sigma[places]) - np.log(sigma[i])) / np.log(ratio)
    rho = np.array([0.5])
    if len(places) > 1:
        right, value = [], np.expm1(k) / k - 1
        for n in range(1, len(places) + 1):
            right.append(value * math.factorial(n) / of_step)
            value = value / k - 1 / math.factorial(n + 1)
        rho = np.linalg.solve(np.vander(r, increasing=True).T, right)
    differences = -scale * of_step * rho / r
    weights[i + 1 - places] += differences
    weights[1] -= differences.sum()
    return weights


@dataclasses.dataclass(frozen=True)
class UniPC(Sampler):
    """UniPC of orders 1 to 3: a predictor of order p (UniP-p), corrected to order p + 1 by the next call (UniC-p).

    `unified_weights` has the formula. `variant` is B(h), `predict` what is integrated. The last steps have lower order
    if `lower_order_final`. `uncorrected` are the numbers of steps, from 0, that are not corrected. If the spacing ends
    without noise, the last step ends at `last_sigma`.

    Source: Zhao et al. 2023 (arXiv 2302.04867), algorithms 5 and 6; diffusers' UniPCMultistepScheduler; ComfyUI's
    uni_pc and uni_pc_bh2, which end at sigma 0.001.
    """

    spacing: str | Schedule = "even"
    end: End = "zero"
    order: int = 2
    variant: Literal["bh1", "bh2"] = "bh2"
    predict: Literal["x0", "epsilon"] = "x0"
    lower_order_final: bool = True
    uncorrected: tuple[int, ...] = ()
    last_sigma: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_order(self.order, 3)
        choose("variant", self.variant, VARIANTS)
        choose("predict", self.predict, PREDICTS)
        number("last_sigma", self.last_sigma, 0)

    def steps(self, schedule: NoiseSchedule, num_steps: int, *, skip: int = 0) -> Rows:
        """Returns the rows of `rows`, without the first `skip` steps."""
        return self.rows(schedule, self.grid(schedule, num_steps, skip=skip), skip)

    def rows(self, schedule: NoiseSchedule, grid: Grid, skip: int = 0) -> Rows:
        """Returns one row per step."""
        t, sigma = grid
        n = len(t) - 1
        if sigma[-1] == 0:
            sigma = np.append(sigma[:-1], self.last_sigma)
        self._check_end(sigma[-1])
        if sigma[-1] >= sigma[-2] and self.last_sigma > 0:
            raise ValueError(f"last_sigma is below the last step's start, {sigma[-2]:.4g}; got {self.last_sigma:g}")
        rows, correct = [], np.zeros(0)
        for i in range(n):
            p = min(self.order, i + 1)
            if self.lower_order_final:
                p = min(p, n - i)
            weights = [
                unified_weights(sigma, i, p, corrected=corrected, variant=self.variant, predict=self.predict)
                for corrected in (False, True)[: 1 + (i + 1 < n)]  # the next call corrects this step
            ]
            base = sigma[i + 1] / sigma[i] if self.predict == "x0" else 1.0
            remember = self.predict
            rows.append(
                row(t[i], sigma[i], sigma[i + 1], base=base, calls=weights[0][1:], correct=correct, remember=remember)
            )
            correct = np.zeros(0) if skip + i in self.uncorrected else weights[-1] - weights[0]
        return stack(rows)

    def _check_end(self, last: float) -> None:
        if last == 0 and not self.can_end_without_noise:
            raise ValueError(
                "UniPC ends without noise only with variant bh2, predict x0 and lower_order_final: otherwise the last "
                "step is infinite; choose an end at sigma_min"
            )

    @property
    def can_end_without_noise(self) -> bool:
        """Whether a last step without noise is finite."""
        return self.predict == "x0" and self.variant == "bh2" and (self.lower_order_final or self.order == 1)
