"""The exponential integrator of both DPM-Solvers: the weights of one leg, for tables and for compiled programs.

Notation of the papers: lambda = -log sigma (half the log SNR). A leg goes from s to t, with h = lambda_t - lambda_s.
m is the network's epsilon ("dpmsolver") or x0 ("dpmsolver++"). D1 and D2 are its first and second differences for a
step of length h. In x = x0 + sigma noise both families have the same form:

    x_t = A x_s - B (phi_1(k) m + phi_2(k) D1 + phi_3(k) D2),
    dpmsolver: A = 1, B = sigma_t, k = h;  dpmsolver++: A = sigma_t / sigma_s, B = 1, k = -h,
    phi_1 = e^k - 1,  phi_2 = phi_1 / k - 1,  phi_3 = phi_2 / k - 1/2.

Source: Lu et al. 2022 (arXiv 2206.00927), appendix B; Lu et al. 2022 (arXiv 2211.01095), appendix A.
"""

from types import ModuleType
from typing import TypeVar

import numpy as np
from jaxtyping import Array

Number = TypeVar("Number", float, np.ndarray, Array)


def leg_weights(
    algorithm: str, sigma_s: Number, h: Number, solver_type: str, math: ModuleType
) -> tuple[Number | float, tuple[Number, Number, Number]]:
    """Returns A and the weights of m, D1 and D2 in x_t, for a leg of length h that starts at sigma_s.

    solver_type "dpm_solver" replaces phi_2 by phi_1 / 2, which is the same to second order. An infinite h means that
    the leg ends without noise; then use only A and the weight of m. `math` is numpy or jax.numpy.
    """
    shrink = math.exp(-h)
    if algorithm == "dpmsolver++":
        a, b, k = shrink, 1.0, -h
        first = math.expm1(-h)
    else:
        a, b, k = 1.0, sigma_s * shrink, h
        first = -sigma_s * math.expm1(-h)  # sigma_t (e^h - 1), also at infinite h
    second = first / k - b
    third = second / k - b / 2
    return a, (-first, -first / 2 if solver_type == "dpm_solver" else -second, -third)
