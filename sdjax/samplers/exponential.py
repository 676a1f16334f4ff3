"""The exponential integrators of both DPM-Solvers, of DEIS and of SA-Solver: the weights of one leg.

Notation of the papers: lambda = -log sigma (half the log SNR). A leg goes from s to t, with h = lambda_t - lambda_s.
m is the network's epsilon ("dpmsolver") or x0 ("dpmsolver++"). D1 and D2 are its first and second differences for a
step of length h. In x = x0 + sigma noise all families have the same form:

    x_t = A x_s - B (phi_1(k) m + phi_2(k) D1 + phi_3(k) D2) + S z,
    phi_1 = e^k - 1,  phi_2 = phi_1 / k - 1,  phi_3 = phi_2 / k - 1/2,

    dpmsolver         A = 1                        B = sigma_t    k = h     S = 0
    dpmsolver++       A = sigma_t / sigma_s        B = 1          k = -h    S = 0
    sde-dpmsolver     A = 1                        B = 2 sigma_t  k = h     S = sigma_t sqrt(e^2h - 1)
    sde-dpmsolver++   A = (sigma_t / sigma_s)^2    B = 1          k = -2h   S = sigma_t sqrt(1 - e^-2h)

Source: Lu et al. 2022 (arXiv 2206.00927), appendix B; Lu et al. 2022 (arXiv 2211.01095), section 5 and appendix A.
"""

from collections.abc import Sequence
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
    stochastic = algorithm.startswith("sde-")
    if algorithm.endswith("++"):
        k = -2 * h if stochastic else -h
        a, b = math.exp(k), 1.0
        first = math.expm1(k)
    else:
        k = h
        a, b = 1.0, (1 + stochastic) * sigma_s * math.exp(-h)
        first = -(1 + stochastic) * sigma_s * math.expm1(-h)  # B (e^h - 1), also at infinite h
    second = first / k - b
    third = second / k - b / 2
    return a, (-first, -first / 2 if solver_type == "dpm_solver" else -second, -third)


def leg_noise(algorithm: str, sigma_s: float, sigma_t: float) -> float:
    """Returns S, the weight of fresh unit noise in a leg from sigma_s to sigma_t; 0 for the solvers of the flow."""
    if not algorithm.startswith("sde-"):
        return 0.0
    end = sigma_t if algorithm.endswith("++") else sigma_s
    return end * np.sqrt(max(0.0, 1 - (sigma_t / sigma_s) ** 2))


def adams_weights(lam: Sequence[float] | np.ndarray, lam_s: float, lam_t: float, k: float) -> np.ndarray:
    """Returns the integrals over a leg of e^(-k (lambda_t - lambda)) L_j(lambda), one for each entry of `lam`.

    L_j are the Lagrange polynomials through the points `lam`. The integrals are exact; they are 0 for a leg of length
    0. `k` is not 0.

    Source: Xue et al. 2023 (arXiv 2309.05019), eq. 14 and appendix B.
    """
    start = lam_s - lam_t
    moments = [-np.expm1(k * start) / k]
    for n in range(1, len(lam)):
        moments.append(-(start**n) * np.exp(k * start) / k - n / k * moments[-1])
    nodes = np.asarray(lam) - lam_t
    return np.linalg.solve(np.vander(nodes, increasing=True).T, moments)
