"""DPM-Solver and DPM-Solver++: orders 1 to 3, multistep, singlestep and adaptive, with their authors' options.

See exponential.py for the notation.

Source: Lu et al. 2022 (arXiv 2206.00927), algorithms 1 to 3; Lu et al. 2022 (arXiv 2211.01095), algorithms 1 and 2;
LuChengTHU/dpm-solver, dpm_solver_pytorch.py, and the older copy of it in ldm/models/diffusion/dpm_solver.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal, TypedDict

import numpy as np

from sdjax.checks.effects import needs, note_effects
from sdjax.samplers.adaptive import Adaptive, control_rows
from sdjax.samplers.exponential import leg_weights
from sdjax.samplers.rows import Rows, row, stack
from sdjax.samplers.rule import Linear, Rule
from sdjax.samplers.sampler import Sampler, choose
from sdjax.samplers.spacing import RANGES, Grid
from sdjax.samplers.thresholding import Thresholded
from sdjax.schedule import NoiseSchedule

ALGORITHMS = {"dpmsolver": "epsilon", "dpmsolver++": "x0"}  # what m is
METHODS = ("multistep", "singlestep", "singlestep_fixed", "adaptive")
SOLVER_TYPES = ("dpm_solver", "taylor")
SKIP_TYPES = ("time_uniform", "logSNR", "time_quadratic")
ADAPTS = (lambda s: s.method == "adaptive", 'but with method "adaptive"')
THRESHOLDS = (lambda s: s.thresholding, "without thresholding")
HIGHER = (lambda s: s.order > 1, "in order 1")


class Leg(TypedDict):
    """Arguments of a row."""

    base: float
    calls: np.ndarray
    remember: str


def leg(algorithm: str, sigma_s: float, sigma_t: float, differences: Sequence[np.ndarray], solver_type: str) -> Leg:
    """Returns the base and calls of a row from sigma_s to sigma_t.

    `differences` are m, then D1 (order 2), then D2 (order 3), as weights of the remembered calls, newest first.
    """
    h = float(np.log(sigma_s / sigma_t)) if sigma_t > 0 else np.inf
    a, weights = leg_weights(algorithm, sigma_s, h, solver_type, np)
    calls = sum((weight * d for weight, d in zip(weights, differences)), np.zeros(len(differences[0])))
    return {"base": a, "calls": calls, "remember": ALGORITHMS[algorithm]}


def backward_differences(sigma: np.ndarray, order: int) -> list[np.ndarray]:
    """Returns m, D1, D2 of the last `order` calls for a step from sigma[-2] to sigma[-1], as weights of the calls.

    The last two entries of `sigma` are the ends of the step; before them are the sigmas of the earlier calls.
    """
    now = np.eye(order)  # now[i]: the weights that pick the i-th last call
    if order == 1:
        return [now[0]]
    lam = -np.log(sigma[-order - 1 :])[::-1]
    h = lam[0] - lam[1]
    r0 = (lam[1] - lam[2]) / h
    d1_0 = (now[0] - now[1]) / r0
    if order == 2:
        return [now[0], d1_0]
    r1 = (lam[2] - lam[3]) / h
    d1_1 = (now[1] - now[2]) / r1
    return [now[0], d1_0 + r0 / (r0 + r1) * (d1_0 - d1_1), 2 * (d1_0 - d1_1) / (r0 + r1)]


def multistep(grid: Grid, algorithm: str, order: int, solver_type: str, lower_order_below: int) -> list[Rows]:
    """Returns one row per step. The first steps have lower order, because there are no earlier calls."""
    t, sigma = grid
    n = len(t) - 1
    rows = []
    for i in range(n):
        p = min(order, i + 1)
        if n < lower_order_below and i + 1 >= order:
            p = min(p, n - i)
        if sigma[i + 1] == 0:  # lambda is infinite: no difference can be formed
            p = 1
        differences = backward_differences(sigma[: i + 2], p)
        kind = solver_type
        if p == 3:
            kind = "taylor"  # phi_2 in either type
            if solver_type == "dpm_solver":
                differences[2] = differences[2] / 2  # as in the authors' code; the result is of second order
        rows.append(row(t[i], sigma[i], sigma[i + 1], **leg(algorithm, sigma[i], sigma[i + 1], differences, kind)))
    return rows


def singlestep(t: np.ndarray, sigma: np.ndarray, algorithm: str, solver_type: str) -> list[Rows]:
    """Returns the rows of one step of order n: n calls at entries 0 to n - 1 of `t` and `sigma`, leading to entry n."""
    n = len(t) - 1
    ends = {"timestep": t[0], "sigma": sigma[0], "sigma_next": sigma[1]}
    rows = [row(**ends, **leg(algorithm, sigma[0], sigma[1], [np.ones(1)], solver_type))]
    lam = -np.log(sigma)
    r = (lam - lam[0]) / (lam[-1] - lam[0])  # 0 < r[1] < r[2] < 1
    for i in range(1, n):
        now = np.eye(i + 1)
        first = now[i]  # the call at the start of the step is the oldest
        end = i + 1
        slope = (now[0] - first) * r[end] / r[i]  # D1 for a step from entry 0 to entry `end`, by the last call
        differences, kind = [first, slope], solver_type
        if n == 3:
            kind = "taylor"  # phi_2 in either type
            if i == 2 and solver_type == "taylor":
                d1_0, d1_1 = (now[1] - first) / r[1], (now[0] - first) / r[2]
                d1 = (r[2] * d1_0 - r[1] * d1_1) / (r[2] - r[1])
                differences = [first, d1, 2 * (d1_1 - d1_0) / (r[2] - r[1])]
        update = leg(algorithm, sigma[0], sigma[end], differences, kind)
        rows.append(row(t[i], sigma[i], sigma[end], **update, starts_step=False))
    return rows


def singlestep_orders(num_calls: int, order: int) -> list[int]:
    """Returns the orders of singlestep steps, highest first, for exactly `num_calls` calls ("DPM-Solver-fast")."""
    full, rest = divmod(num_calls, order)
    if order == 3 and rest == 0:
        return [3] * (full - 1) + [2, 1]
    return [order] * full + [rest] * (rest > 0)


@dataclasses.dataclass(frozen=True)
class DPMSolver(Sampler):
    """DPM-Solver ("dpmsolver") and DPM-Solver++ ("dpmsolver++").

    `method` is one of:
    - "multistep": one call per step.
    - "singlestep": steps of `order` calls, then of lower order, `num_steps` calls in all.
    - "singlestep_fixed": num_steps // order steps of `order` calls each.
    - "adaptive": chooses its step sizes itself and tries at most `num_steps` steps (see adaptive.py).

    `spacing` is the authors' skip type; multistep takes any spacing. `solver_type` "taylor" weighs the differences by
    the exact integrals. In multistep order 3 the authors have no such form and halve the second difference:
    "dpm_solver" does so too and is of second order there; "taylor" is of third. With fewer steps than
    `lower_order_below`, the last steps of multistep have lower order (15 in ldm, 10 in the authors' later code,
    0: never). `denoise_to_zero` calls the network once more at the end and takes its x0. `thresholding` limits x0, for
    models of pixels, by `quantile` and `max_value` (see thresholding.py).

    `atol`, `rtol`, `h_init`, `theta` and `t_err` (1 is the length of the whole schedule) are for the adaptive method.
    `joint` uses one step size for the whole batch, as in the authors' code: a picture then depends on the others.

    If there are fewer steps than the order, the order is lowered.
    """

    spacing: str = "time_uniform"
    algorithm: Literal["dpmsolver", "dpmsolver++"] = "dpmsolver++"
    method: Literal["multistep", "singlestep", "singlestep_fixed", "adaptive"] = "multistep"
    order: int = 2
    solver_type: Literal["dpm_solver", "taylor"] = needs("dpm_solver", *HIGHER)
    lower_order_below: int = needs(
        15, lambda s: s.method == "multistep" and s.order > 1, 'but with method "multistep" of order 2 or 3'
    )
    denoise_to_zero: bool = needs(False, lambda s: s.end == "sigma_min", 'with end "zero", which leaves no noise')
    thresholding: bool = False
    quantile: float = needs(0.995, *THRESHOLDS)
    max_value: float = needs(1.0, *THRESHOLDS)
    atol: float = needs(0.0078, *ADAPTS)
    rtol: float = needs(0.05, *ADAPTS)
    h_init: float = needs(0.05, *ADAPTS)
    theta: float = needs(0.9, *ADAPTS)
    t_err: float = needs(1e-5, *ADAPTS)
    joint: bool = needs(False, *ADAPTS)

    def __post_init__(self) -> None:
        super().__post_init__()
        choose("algorithm", self.algorithm, ALGORITHMS)
        choose("method", self.method, METHODS)
        choose("solver_type", self.solver_type, SOLVER_TYPES)
        if self.method == "adaptive" and self.order not in (2, 3):
            raise ValueError(f"the adaptive method has order 2 or 3; got {self.order}")
        if self.order not in (1, 2, 3):
            raise ValueError(f"order is 1, 2 or 3; got {self.order}")
        if self.method != "multistep" and (self.spacing not in SKIP_TYPES or self.end != "sigma_min"):
            raise ValueError(
                f"method {self.method!r} takes spacing {', '.join(SKIP_TYPES)} and end sigma_min; "
                f"got {self.spacing!r} and {self.end!r}"
            )
        if self.lower_order_below < 0:
            raise ValueError(f"lower_order_below is a number of steps from 0 up; got {self.lower_order_below}")
        if self.thresholding and self.algorithm != "dpmsolver++":
            raise ValueError(f"thresholding needs algorithm 'dpmsolver++', which remembers x0; got {self.algorithm!r}")
        if not 0 <= self.quantile <= 1:
            raise ValueError(f"quantile is a number from 0 to 1; got {self.quantile}")
        for name in ("max_value", "atol", "rtol", "h_init", "theta", "t_err"):
            if not 0 < getattr(self, name) < np.inf:
                raise ValueError(f"{name} is a positive number; got {getattr(self, name)}")
        note_effects(self)

    @property
    def rule(self) -> Rule:
        """The compiled part of the sampler."""
        rule: Rule = Linear()
        if self.method == "adaptive":
            rule = Adaptive(self.algorithm, self.order, self.solver_type, self.joint)
        return Thresholded(rule, self.quantile, self.max_value) if self.thresholding else rule

    def steps(self, schedule: NoiseSchedule, num_steps: int, *, skip: int = 0) -> Rows:
        """Returns one row per call of the network; the adaptive method has one row in all."""
        grid = self.grid(schedule, num_steps, skip=skip)
        n = len(grid.timestep) - 1
        if self.method == "adaptive":
            return control_rows(self, schedule, grid)
        order = min(self.order, n)
        if self.method == "multistep":
            rows = multistep(grid, self.algorithm, order, self.solver_type, self.lower_order_below)
        else:
            rows = []
            for part in self._parts(schedule, grid, order):
                rows += singlestep(*part, self.algorithm, self.solver_type)
        if self.denoise_to_zero and grid.sigma[-1] > 0:
            rows.append(row(grid.timestep[-1], grid.sigma[-1], 0.0, base=0.0, calls=[1.0]))
        return stack(rows)

    def _parts(self, schedule: NoiseSchedule, grid: Grid, order: int) -> list[Grid]:
        """Returns the grid of each singlestep step: its calls, and the point where it ends."""
        spaced = RANGES[self.spacing]
        n = len(grid.timestep) - 1
        ends = grid.timestep[0], grid.timestep[-1]
        fixed = self.method == "singlestep_fixed"
        orders = [order] * (n // order) if fixed else singlestep_orders(n, order)
        if fixed or self.spacing == "logSNR":
            outer = spaced(schedule, *ends, len(orders) + 1).timestep
        else:
            outer = grid.timestep[np.cumsum([0, *orders])]
        return [spaced(schedule, outer[i], outer[i + 1], p + 1) for i, p in enumerate(orders)]
