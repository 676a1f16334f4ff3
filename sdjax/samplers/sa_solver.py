"""SA-Solver: stochastic Adams methods with a predictor and a corrector, for x0 or epsilon."""

import dataclasses
from typing import ClassVar, Literal

import numpy as np

from sdjax.checks.arguments import number
from sdjax.samplers.exponential import adams_weights
from sdjax.samplers.rows import MEMORY, Rows, row, stack
from sdjax.samplers.sampler import End, Sampler, choose
from sdjax.samplers.schedules import Schedule
from sdjax.samplers.spacing import Grid
from sdjax.samplers.unipc import PREDICTS
from sdjax.schedule import NoiseSchedule


@dataclasses.dataclass(frozen=True)
class SASolver(Sampler):
    """SA-Solver: an SDE with the noise tau, solved by Adams-Bashforth (predictor) and Adams-Moulton (corrector).

    With K = 1 + tau^2, h the step in lambda and L_j the Lagrange polynomials in lambda through the last calls, for x0

        x' = (sigma' / sigma) e^(-tau^2 h) x + sum_j b_j m_j + sigma' sqrt(1 - e^(-2 tau^2 h)) z,
        b_j = K integral of e^(-K (lambda' - lambda)) L_j(lambda);

    and for epsilon x' = x - K sigma' sum_j (integral of e^(lambda' - lambda) L_j) m_j + tau sigma' sqrt(e^2h - 1) z.
    The predictor takes `predictor_order` calls up to the step's start. The corrector makes the step again, with the
    same noise and with the call at its end, of `corrector_order` calls in all (0: no corrector).

    tau is `eta` in the middle of the run, between the timesteps `noise_end` and `noise_start`, and 0 outside. What lies
    between them is the step's end, or with `tau_by_start` its start. `simple` replaces the integrals of two points by
    K h / 2, as in the paper's appendix D. `evaluates_twice` calls the network at the corrected x again ("PECE"). The
    last steps have lower order if `lower_order_final`. A step that ends without noise takes x0.

    Source: Xue et al. 2023 (arXiv 2309.05019), algorithm 1, eq. 14 to 19; ComfyUI's sa_solver and sa_solver_pece.
    """

    spacing: str | Schedule = "karras"
    end: End = "zero"
    predictor_order: int = 3
    corrector_order: int = 4
    eta: float = 1.0
    s_noise: float = 1.0
    noise_start: float = 799.2
    noise_end: float = 199.8
    predict: Literal["x0", "epsilon"] = "x0"
    evaluates_twice: bool = False
    simple: bool = False
    tau_by_start: bool = False
    lower_order_final: bool = True
    variance_preserving: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        choose("predict", self.predict, PREDICTS)
        for name in ("eta", "s_noise", "noise_start", "noise_end"):
            number(name, getattr(self, name), 0)
        if self.predictor_order not in (1, 2, 3, 4) or self.corrector_order not in (0, 1, 2, 3, 4):
            raise ValueError(
                "predictor_order is 1 to 4 and corrector_order 0 to 4; "
                f"got {self.predictor_order} and {self.corrector_order}"
            )
        if self.evaluates_twice and (self.predictor_order > 3 or self.corrector_order == 0):
            raise ValueError(
                "evaluates_twice needs a predictor_order of at most 3 and a corrector; "
                f"got predictor_order {self.predictor_order} and corrector_order {self.corrector_order}"
            )

    def tau(self, schedule: NoiseSchedule, grid: Grid, i: int) -> float:
        """Returns tau of step i."""
        if self.tau_by_start:
            inside = self.noise_end <= grid.timestep[i] <= self.noise_start
        else:
            last, first = schedule.sigma(np.array([self.noise_end, self.noise_start]), "log_sigma")
            inside = last <= grid.sigma[i + 1] <= first
        return self.eta if inside else 0.0

    def weights(self, lam: np.ndarray, lam_s: float, lam_t: float, tau: float) -> np.ndarray:
        """Returns b_j for the calls at `lam`, newest first, in a step from lam_s to lam_t."""
        k, h = 1 + tau**2, lam_t - lam_s
        if self.predict == "epsilon":
            return -k * np.exp(-lam_t) * adams_weights(lam, lam_s, lam_t, -1.0)
        if self.simple and len(lam) == 2:
            slope = k * h**2 / 2 / (lam[0] - lam[1])
            if lam[0] != lam_s:  # the corrector: h^2 / (lam[0] - lam[1]) is h
                return np.array([slope, -np.expm1(-k * h) - slope])
            return np.array([-np.expm1(-k * h) + slope, -slope])
        return k * adams_weights(lam, lam_s, lam_t, k)

    def leg(self, grid: Grid, i: int, tau: float) -> tuple[float, float]:
        """Returns the weights of x and of noise in step i."""
        sigma, sigma_next = grid.sigma[i : i + 2]
        h = np.log(sigma / sigma_next)
        if self.predict == "epsilon":
            return 1.0, tau * sigma_next * np.sqrt(np.expm1(2 * h)) * self.s_noise
        base = sigma_next / sigma * np.exp(-(tau**2) * h)
        return base, sigma_next * np.sqrt(-np.expm1(-2 * tau**2 * h)) * self.s_noise

    def orders(self, i: int, n: int, skip: int, *, to_zero: bool) -> tuple[int, int]:
        """Returns the orders of predictor and corrector at step i of n; `skip` steps before them were left out.

        Those of a predictor that takes x0, and of a corrector before it, have no meaning.
        """
        p, q = min(self.predictor_order, i + 1), min(self.corrector_order, i + 1)
        if self.lower_order_final and to_zero:
            p, q = min(p, n - 1 - i), min(q, n - i)
        if i == 0 or (to_zero and i == n - 1 and not self.evaluates_twice):
            q = 0
        return p, q

    def steps(self, schedule: NoiseSchedule, num_steps: int, *, skip: int = 0) -> Rows:
        """Returns the rows of `rows`, without the first `skip` steps."""
        return self.rows(schedule, self.grid(schedule, num_steps, skip=skip), skip)

    def rows(self, schedule: NoiseSchedule, grid: Grid, skip: int = 0) -> Rows:
        """Returns one row per call of the network: one for each step, or two after the first with `evaluates_twice`."""
        t, sigma = grid
        n = len(sigma) - 1
        lam = -np.log(np.maximum(sigma, np.finfo(np.float64).tiny))
        twice = self.evaluates_twice
        rows: list[Rows] = []
        predicted, tau = np.zeros(0), 0.0  # of the step that led here
        for i in range(n):
            p, q = self.orders(i, n, skip, to_zero=sigma[-1] == 0)
            correct = np.zeros(MEMORY + 1)
            if q > 0:
                before = np.arange(1, max(q, len(predicted) + 1))  # steps before this one; their last calls are
                places = np.append(0, 2 * before - 1 if twice else before)  # so many calls before this one
                correct[places[:q]] = self.weights(lam[i - q + 1 : i + 1][::-1], lam[i - 1], lam[i], tau)
                correct[places[1 : len(predicted) + 1]] -= predicted
            again = twice and q > 0
            if again:
                rows.append(row(t[i], sigma[i], sigma[i], calls=[], correct=correct, remember=self.predict))
                correct = np.zeros(0)
            if sigma[i + 1] == 0:
                of_epsilon = self.predict == "epsilon"
                base, noise, predicted = float(of_epsilon), 0.0, np.array([-sigma[i] if of_epsilon else 1.0])
            else:
                tau = self.tau(schedule, grid, i)
                base, noise = self.leg(grid, i, tau)
                predicted = self.weights(lam[i - p + 1 : i + 1][::-1], lam[i], lam[i + 1], tau)
            calls = np.zeros(MEMORY + 1)
            calls[np.arange(len(predicted)) * (2 if twice else 1)] = predicted
            rows.append(row(
                t[i], sigma[i], sigma[i + 1], base=base, calls=calls, correct=correct, noise=noise,
                starts_step=not again, remember=self.predict,
            ))  # fmt: skip
        return stack(rows)
