"""UniPC: each call of the network corrects the previous step, and then predicts the next one."""

import dataclasses
import math

import numpy as np

from sdjax.samplers.rows import Rows, row, stack
from sdjax.samplers.sampler import End, Sampler
from sdjax.schedule import NoiseSchedule


def unified_weights(sigma: np.ndarray, i: int, order: int, *, corrected: bool) -> np.ndarray:
    """Returns the weights of x0 at entries i + 1, i, i - 1, ... in the step from sigma[i] to sigma[i + 1].

    With the papers' letters, h the step in lambda and B(h) = e^(-h) - 1, the step is

        x' = e^(-h) x - B(h) (m_0 + sum_j rho_j (m_j - m_0) / r_j),    r_j = (lambda_j - lambda_0) / h,

    The sum is over the `order` - 1 entries before entry i, and over entry i + 1 if `corrected`. The rho_j solve
    sum_j rho_j r_j^(n - 1) = n! h phi_{n + 1}(-h) / B(h), n = 1, 2, ...; a single rho is 1/2, as the paper proposes.
    """
    ratio = sigma[i + 1] / sigma[i]
    weights = np.zeros(order + 1)
    weights[1] = 1 - ratio
    places = np.array([i - j for j in range(1, order)] + [i + 1] * corrected, int)
    if len(places) == 0:
        return weights
    k = np.log(ratio)  # -h
    r = (np.log(sigma[places]) - np.log(sigma[i])) / k
    rho = np.array([0.5])
    if len(places) > 1:
        right, value = [], np.expm1(k) / k - 1
        for n in range(1, len(places) + 1):
            right.append(value * math.factorial(n) / np.expm1(k))
            value = value / k - 1 / math.factorial(n + 1)
        rho = np.linalg.solve(np.vander(r, increasing=True).T, right)
    differences = (1 - ratio) * rho / r
    weights[i + 1 - places] += differences
    weights[1] -= differences.sum()
    return weights


@dataclasses.dataclass(frozen=True)
class UniPC(Sampler):
    """UniPC of orders 1 to 3 for x0, with B(h) = e^(-h) - 1 ("bh2"). The last steps have lower order.

    Source: Zhao et al. 2023 (arXiv 2302.04867), algorithms 5 and 6; diffusers' UniPCMultistepScheduler.
    """

    end: End = "zero"
    order: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order not in (1, 2, 3):
            raise ValueError(f"order is 1, 2 or 3; got {self.order}")

    def steps(self, schedule: NoiseSchedule, num_steps: int, *, skip: int = 0) -> Rows:
        """Returns one row per step."""
        t, sigma = self.grid(schedule, num_steps, skip=skip)
        n = len(t) - 1
        rows, correct = [], np.zeros(0)
        for i in range(n):
            p = min(self.order, i + 1, n - i)
            predictor = unified_weights(sigma, i, p, corrected=False)
            base = sigma[i + 1] / sigma[i]
            rows.append(row(t[i], sigma[i], sigma[i + 1], base=base, calls=predictor[1:], correct=correct))
            if i + 1 < n:  # the next call corrects this step
                correct = unified_weights(sigma, i, p, corrected=True) - predictor
        return stack(rows)
