"""DPM-Solver and DPM-Solver++, and their SDE forms, with their authors' options: multistep and singlestep.

See exponential.py for the notation, and adaptive.py for the adaptive method.

Source: Lu et al. 2022 (arXiv 2206.00927), algorithms 1 to 3; Lu et al. 2022 (arXiv 2211.01095), algorithms 1 and 2;
LuChengTHU/dpm-solver, dpm_solver_pytorch.py, and the older copy of it in ldm/models/diffusion/dpm_solver.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Literal, TypeAlias, TypedDict

import numpy as np

from sdjax.checks.effects import needs, note_effects
from sdjax.samplers.exponential import leg_noise, leg_weights
from sdjax.samplers.rows import Rows, row, stack
from sdjax.samplers.rule import Linear, Rule
from sdjax.samplers.sampler import Sampler, check_positive, choose
from sdjax.samplers.schedules import Schedule
from sdjax.samplers.spacing import RANGES, Grid
from sdjax.samplers.thresholding import Limited, Threshold
from sdjax.schedule import NoiseSchedule

Algorithm: TypeAlias = Literal["dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++"]
SolverType: TypeAlias = Literal["dpm_solver", "taylor"]

# what m is
ALGORITHMS = {"dpmsolver": "epsilon", "dpmsolver++": "x0", "sde-dpmsolver": "epsilon", "sde-dpmsolver++": "x0"}
SOLVER_TYPES = ("dpm_solver", "taylor")
SKIP_TYPES = ("time_uniform", "logSNR", "time_quadratic")
THRESHOLDS = (lambda s: s.thresholding, "without thresholding")
HIGHER = (lambda s: s.order > 1, "in order 1")
LEAVES_NOISE = (lambda s: s.end == "sigma_min", 'with end "zero", which leaves no noise')


class Leg(TypedDict):
    """Arguments of a row."""

    base: float
    calls: np.ndarray
    noise: float
    remember: str


def leg(algorithm: str, sigma_s: float, sigma_t: float, differences: Sequence[np.ndarray], solver_type: str) -> Leg:
    """Returns the base, calls and noise of a row from sigma_s to sigma_t.

    `differences` are m, then D1 (order 2), then D2 (order 3), as weights of the remembered calls, newest first.
    """
    h = float(np.log(sigma_s / sigma_t)) if sigma_t > 0 else np.inf
    a, weights = leg_weights(algorithm, sigma_s, h, solver_type, np)
    calls = sum((weight * d for weight, d in zip(weights, differences)), np.zeros(len(differences[0])))
    noise = leg_noise(algorithm, sigma_s, sigma_t)
    return {"base": a, "calls": calls, "noise": noise, "remember": ALGORITHMS[algorithm]}


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


def multistep(grid: Grid, algorithm: str, order: int, solver_type: str, *, lowered: bool, euler: bool) -> list[Rows]:
    """Returns one row per step. The first steps have lower order, because there are no earlier calls.

    If `lowered`, the last steps have lower order too. With `euler` the last one is of first order.
    """
    t, sigma = grid
    n = len(t) - 1
    order = min(order, n)
    rows = []
    for i in range(n):
        if sigma[i + 1] == sigma[i]:  # a step of length 0
            rows.append(row(t[i], sigma[i], sigma[i + 1], calls=[0.0], remember=ALGORITHMS[algorithm]))
            continue
        p = min(order, i + 1)
        if lowered and i + 1 >= order:
            p = min(p, n - i)
        if sigma[i + 1] == 0 or (euler and i == n - 1):  # if lambda is infinite, no difference can be formed
            p = 1
        differences = backward_differences(sigma[: i + 2], p)
        kind = solver_type
        if p == 3:
            kind = "taylor"  # phi_2 in either type
            if solver_type == "dpm_solver":
                differences[2] = differences[2] / 2  # as in the authors' code; the result is of second order
        rows.append(row(t[i], sigma[i], sigma[i + 1], **leg(algorithm, sigma[i], sigma[i + 1], differences, kind)))
    return rows


def singlestep(
    t: np.ndarray, sigma: np.ndarray, algorithm: str, solver_type: str, middle: str = "taylor"
) -> list[Rows]:
    """Returns the rows of one step of order n: n calls at entries 0 to n - 1 of `t` and `sigma`, leading to entry n.

    `middle` is the solver type of the way to the third call.
    """
    n = len(t) - 1
    ends = {"timestep": t[0], "sigma": sigma[0], "sigma_next": sigma[1]}
    rows = [row(**ends, **leg(algorithm, sigma[0], sigma[1], [np.ones(1)], solver_type))]
    if n == 1:
        return rows
    lam = -np.log(sigma)
    r = (lam - lam[0]) / (lam[-1] - lam[0])  # 0 < r[1] < r[2] < 1
    for i in range(1, n):
        now = np.eye(i + 1)
        first = now[i]  # the call at the start of the step is the oldest
        end = i + 1
        slope = (now[0] - first) * r[end] / r[i]  # D1 for a step from entry 0 to entry `end`, by the last call
        differences, kind = [first, slope], solver_type
        if n == 3:
            kind = "taylor" if i == 2 else middle  # phi_2 in either type
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
    """The base of the DPM-Solvers ("dpmsolver": epsilon is integrated; "dpmsolver++": x0; "sde-...": with fresh noise).

    `spacing` is the authors' skip type. `solver_type` "taylor" weighs the differences by the exact integrals.
    `denoise_to_zero` calls the network once more at the end and takes its x0. `thresholding` limits x0, for models of
    pixels, by `quantile` and `max_value` (see thresholding.py).

    If there are fewer steps than the order, the order is lowered.
    """

    spacing: str | Schedule = "time_uniform"
    algorithm: Algorithm = "dpmsolver++"
    order: int = 2
    solver_type: SolverType = needs("dpm_solver", *HIGHER)
    denoise_to_zero: bool = needs(False, *LEAVES_NOISE)
    thresholding: bool = False
    quantile: float = needs(0.995, *THRESHOLDS)
    max_value: float = needs(1.0, *THRESHOLDS)

    skip_types: ClassVar[tuple[str, ...] | None] = SKIP_TYPES
    algorithms: ClassVar[tuple[str, ...]] = tuple(ALGORITHMS)
    orders: ClassVar[tuple[int, ...]] = (1, 2, 3)

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        choose("algorithm", self.algorithm, self.algorithms)
        choose("solver_type", self.solver_type, SOLVER_TYPES)
        if self.order not in self.orders:
            *most, last = map(str, self.orders)
            raise ValueError(f"order of {name} is {', '.join(most)} or {last}; got {self.order}")
        if isinstance(self.spacing, str) and self.skip_types is not None:
            self._check_skip_type(self.skip_types)
        if self.thresholding and not self.algorithm.endswith("++"):
            raise ValueError(f"thresholding needs an algorithm that remembers x0, with ++; got {self.algorithm!r}")
        if not 0 <= self.quantile <= 1:
            raise ValueError(f"quantile is a number from 0 to 1; got {self.quantile}")
        check_positive(self, "max_value")
        note_effects(self)

    def _check_skip_type(self, known: Sequence[str]) -> None:
        if self.spacing not in known or self.end != "sigma_min":
            raise ValueError(
                f"{type(self).__name__} takes spacing {', '.join(known)} and end sigma_min; "
                f"got {self.spacing!r} and {self.end!r}"
            )

    @property
    def unbounded(self) -> Rule:
        """The compiled part of the sampler, without thresholding."""
        return Linear()

    @property
    def rule(self) -> Rule:
        """The compiled part of the sampler."""
        limit = Threshold(self.quantile, self.max_value)
        return Limited(self.unbounded, limit) if self.thresholding else self.unbounded

    def single(self, parts: Sequence[Grid]) -> list[Rows]:
        """Returns the rows of singlestep steps, given the grid of each: its calls, and the point where it ends."""
        return [one for part in parts for one in singlestep(*part, self.algorithm, self.solver_type)]

    def finished(self, rows: list[Rows], grid: Grid) -> Rows:
        """Returns the rows of a whole run. With `denoise_to_zero` one more row takes the network's x0 at the end."""
        if self.denoise_to_zero and grid.sigma[-1] > 0:
            rows = [*rows, row(grid.timestep[-1], grid.sigma[-1], 0.0, base=0.0, calls=[1.0])]
        return stack(rows)


@dataclasses.dataclass(frozen=True)
class DPMSolverMultistep(DPMSolver):
    """The multistep DPM-Solvers: one call per step. See `DPMSolver` for the fields that are not explained here.

    In order 2, with h the step in lambda and r = h_previous / h:
    x' = A x - B (phi_1(k) m + phi_2(k) (m - m_previous) / r) + S z, with A, B, k, S of the algorithm (exponential.py).

    Any spacing is possible. In order 3 the authors have no "taylor" form and halve the second difference: "dpm_solver"
    does so too and is of second order there; "taylor" is of third. With fewer steps than `lower_order_below`, the last
    steps have lower order (15 in ldm and diffusers, 10 in the authors' later code, 0: never). `euler_at_final`: the
    last step is of first order, as it always is if it ends without noise.

    Source: Lu et al. 2022 (arXiv 2211.01095), algorithm 2, and for the SDE section 5; DPMSolverMultistepScheduler.
    """

    lower_order_below: int = needs(15, lambda s: s.order > 1, "in order 1")
    euler_at_final: bool = needs(False, lambda s: s.order > 1 and s.end == "sigma_min", "if the last step is Euler's")

    skip_types: ClassVar[tuple[str, ...] | None] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lower_order_below < 0:
            raise ValueError(f"lower_order_below is a number of steps from 0 up; got {self.lower_order_below}")

    def steps(self, schedule: NoiseSchedule, num_steps: int, *, skip: int = 0) -> Rows:
        """Returns the rows of `rows`, without the first `skip` steps."""
        return self.rows(schedule, self.grid(schedule, num_steps, skip=skip), skip)

    def rows(self, schedule: NoiseSchedule, grid: Grid, skip: int = 0) -> Rows:
        """Returns one row per step, and one more with `denoise_to_zero`."""
        n = len(grid.timestep) - 1
        if isinstance(self.spacing, Schedule) and self.spacing.counts_all:
            n += skip
        rows = multistep(
            grid,
            self.algorithm,
            self.order,
            self.solver_type,
            lowered=n < self.lower_order_below,
            euler=self.euler_at_final,
        )
        return self.finished(rows, grid)


@dataclasses.dataclass(frozen=True)
class DPMSolverSinglestep(DPMSolver):
    """The singlestep DPM-Solvers ("DPM-Solver-fast"): steps of `order` calls, then of lower order.

    In order 2, with h the step in lambda, r the place of the middle, and s, u, t its start, middle and end:
    u = A x_s - B phi_1(k_u) m_s;  x_t = A x_s - B (phi_1(k) m_s + phi_2(k) (m_u - m_s) / r).

    `num_steps` is the number of network calls in all.

    Source: Lu et al. 2022 (arXiv 2206.00927), algorithms 4 and 5 and section 3.4; DPMSolverSinglestepScheduler.
    """

    def rows(self, schedule: NoiseSchedule, grid: Grid) -> Rows:
        """Returns one row per call of the network."""
        n = len(grid.timestep) - 1
        orders = ending(singlestep_orders(n, min(self.order, n)), grid)
        parts = divided(schedule, self.spacing, grid, orders, even=self.spacing == "logSNR")
        return self.finished(self.single(parts), grid)


@dataclasses.dataclass(frozen=True)
class DPMSolverSinglestepFixed(DPMSolver):
    """The singlestep DPM-Solvers with one order: num_steps // order steps of `order` calls each.

    A schedule that is an object decides the calls; where their number is no multiple of the order, the last step is
    shorter.

    The steps are those of `DPMSolverSinglestep`. Source: dpm_solver_pytorch.py, method "singlestep_fixed".
    """

    def rows(self, schedule: NoiseSchedule, grid: Grid) -> Rows:
        """Returns one row per call of the network."""
        n = len(grid.timestep) - 1
        order = min(self.order, n)
        orders = [order] * (n // order)
        if not isinstance(self.spacing, str) and n % order:  # the grid's points are the calls: reach its end
            orders.append(n % order)
        parts = divided(schedule, self.spacing, grid, ending(orders, grid), even=True)
        return self.finished(self.single(parts), grid)


def ending(orders: Sequence[int], grid: Grid) -> list[int]:
    """Returns the orders of the steps, with the last one of order 1 if the grid ends without noise.

    There lambda has no end, so a step of higher order would have no middle; its other calls are a step of their own.
    """
    *first, last = orders
    if last == 1 or grid.sigma[sum(orders)] > 0:
        return list(orders)
    return [*first, last - 1, 1]


def divided(
    schedule: NoiseSchedule, spacing: str | Schedule, grid: Grid, orders: Sequence[int], *, even: bool
) -> list[Grid]:
    """Returns the grid of each singlestep step: its calls, and the point where it ends.

    The steps are of one length in the spacing if `even`, else of as many of the grid's intervals as their order says.
    The calls are evenly spaced in a step. If the spacing is an object, they are at the grid's points.
    """
    bounds = np.cumsum([0, *orders])
    if not isinstance(spacing, str):
        return [Grid(*(values[a : b + 1] for values in grid)) for a, b in zip(bounds, bounds[1:])]
    spaced = RANGES[spacing]
    outer = grid.timestep[bounds]
    if even:
        outer = spaced(schedule, grid.timestep[0], grid.timestep[-1], len(orders) + 1).timestep
    return [spaced(schedule, outer[i], outer[i + 1], p + 1) for i, p in enumerate(orders)]
