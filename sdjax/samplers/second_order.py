"""Samplers with one call a step that use the call before it: RES multistep, gradient estimation, DPM++ 2M CFG++.

In their CFG++ forms the remembered result is the unconditional branch's, and the guided x0 enters beside it.
"""

import dataclasses
from typing import ClassVar

import numpy as np

from sdjax.checks.arguments import number
from sdjax.samplers.ancestral import AddsNoise, split_noise
from sdjax.samplers.rows import Rows, row, stack
from sdjax.samplers.sampler import End, Sampler
from sdjax.samplers.spacing import Grid
from sdjax.schedule import NoiseSchedule

UNCONDITIONAL = (0.0, 0.0, 1.0)  # weights of x, x0 and the unconditional x0


@dataclasses.dataclass(frozen=True)
class ResMultistep(AddsNoise):
    """RES of second order: an exponential multistep method, and its ancestral form. With h = log(sigma / sigma_down):

    x' = e^(-h) x + h (b_1 x0 + b_2 x0_previous) + s_noise sigma_up z,
    b_2 = phi_2(-h) / c_2,  b_1 = phi_1(-h) - b_2,  c_2 h = log(sigma_down of the step before / sigma_previous),
    phi_1(k) = (e^k - 1) / k,  phi_2(k) = (phi_1(k) - 1) / k.

    With `cfg_pp` (CFG++) both x0 are unconditional, and x is shifted by x0 - x0_unconditional.

    Source: Zhang et al. 2023 (arXiv 2308.02157), section 3; ComfyUI's res_multistep.
    """

    spacing: str = "karras"
    end: End = "zero"
    cfg_pp: bool = False

    @property
    def uses_unconditional(self) -> bool:
        """Whether the steps use the unconditional x0."""
        return self.cfg_pp

    def rows(self, schedule: NoiseSchedule, grid: Grid) -> Rows:
        """Returns one row per step."""
        t, sigma = grid
        rows, previous = [], 0.0  # sigma_down of the step before
        for i in range(len(t) - 1):
            down, up = split_noise(sigma[i], sigma[i + 1], self.eta)
            keep = down / sigma[i]  # e^(-h)
            weights = np.array([1 - keep, 0.0])
            if i > 0 and down > 0:
                h = -np.log(keep)
                phi_1 = -np.expm1(-h) / h
                b_2 = (1 - phi_1) / h * h / np.log(previous / sigma[i - 1])
                weights = h * np.array([phi_1 - b_2, b_2])
            own = (0.0, 0.0, 0.0)
            if self.cfg_pp:
                own = (0.0, 1.0, -1.0) if i == 0 or down == 0 else (0.0, keep, -keep)
            rows.append(row(
                t[i], sigma[i], sigma[i + 1], base=keep, calls=weights, own=own, noise=self.s_noise * up,
                remember=UNCONDITIONAL if self.cfg_pp else "x0",
            ))  # fmt: skip
            previous = down
        return stack(rows)


@dataclasses.dataclass(frozen=True)
class GradientEstimation(Sampler):
    """Euler's method with the slope extrapolated from the one before: d' = d + (gamma - 1) (d - d_previous).

    x' = x + (sigma' - sigma) d',  d = (x - x0) / sigma.

    With `cfg_pp` (CFG++) d is that of the unconditional branch, and x' = x0 + sigma' d + (sigma' - sigma) (d' - d).

    Source: Permenter & Yuan 2023 (arXiv 2306.04848), section 5; ComfyUI's sample_gradient_estimation.
    """

    spacing: str = "karras"
    end: End = "zero"
    gamma: float = 2.0
    cfg_pp: bool = False
    variance_preserving: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        number("gamma", self.gamma)

    @property
    def uses_unconditional(self) -> bool:
        """Whether the steps use the unconditional x0."""
        return self.cfg_pp

    def rows(self, schedule: NoiseSchedule, grid: Grid) -> Rows:
        """Returns one row per step."""
        t, sigma = grid
        rows = []
        for i in range(len(t) - 1):
            dt = sigma[i + 1] - sigma[i]
            more = (self.gamma - 1) * dt if i > 0 and sigma[i + 1] > 0 else 0.0
            ends = (t[i], sigma[i], sigma[i + 1])
            if self.cfg_pp:
                slope = (1 / sigma[i], 0.0, -1 / sigma[i])
                calls = [sigma[i + 1] + more, -more]
                rows.append(row(*ends, base=0.0, own=(0.0, 1.0, 0.0), calls=calls, remember=slope))
            else:
                rows.append(row(*ends, calls=[dt + more, -more], remember="epsilon"))
        return stack(rows)


@dataclasses.dataclass(frozen=True)
class DPMSolver2MCFGPP(Sampler):
    """DPM-Solver++(2M) in CFG++ form. With u the unconditional x0, h the step in -log sigma and r = h_previous / h:

    x' = e^(-h) (x - u) + x0 + (1 - e^(-h)) (x0 - u_previous) / (2 r).

    Source: ComfyUI's sample_dpmpp_2m_cfg_pp, after Chung et al. 2024 (arXiv 2406.08070), appendix.
    """

    spacing: str = "karras"
    end: End = "zero"
    variance_preserving: ClassVar[bool] = False

    @property
    def uses_unconditional(self) -> bool:
        """The steps use the unconditional x0."""
        return True

    def rows(self, schedule: NoiseSchedule, grid: Grid) -> Rows:
        """Returns one row per step."""
        t, sigma = grid
        rows = []
        for i in range(len(t) - 1):
            keep, change = sigma[i + 1] / sigma[i], 0.0
            if i > 0 and keep > 0:
                change = (1 - keep) / 2 * np.log(keep) / np.log(sigma[i] / sigma[i - 1])
            rows.append(row(
                t[i], sigma[i], sigma[i + 1], base=keep, calls=[-keep, -change], remember=UNCONDITIONAL,
                own=(0.0, 1 + change, 0.0),
            ))  # fmt: skip
        return stack(rows)
