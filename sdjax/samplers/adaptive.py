"""The adaptive DPM-Solver: it compares a lower order with a higher one and chooses its steps by the difference.

How many calls of the network it makes is known only when it is done, so it is no table of weights: its single row says
where it starts, ends and how exact it shall be, and its rule holds a loop of its own. Each picture has a step size of
its own, unless `joint`; a picture that is done waits for the others.

Source: Lu et al. 2022 (arXiv 2206.00927), appendix C and algorithm 3; dpm_solver_pytorch.py:dpm_solver_adaptive.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.samplers.base import Denoiser, State, Steps
from sdjax.samplers.spacing import Grid
from sdjax.schedule import NoiseSchedule
from sdjax.typing import Latent


class Control(NamedTuple):
    """What the adaptive rule reads from its row; one entry a row."""

    sigma_end: np.ndarray  # where the loop ends
    atol: np.ndarray
    rtol: np.ndarray
    h_init: np.ndarray  # first step size, in lambda
    theta: np.ndarray  # how far below the step size that the error allows to stay
    t_err: np.ndarray  # distance from the end, in timesteps, that counts as arrived
    attempts: np.ndarray  # steps tried at most; what is then left is one step of first order
    denoise_to_zero: np.ndarray
    log_alpha: np.ndarray  # [num_timesteps]: -log alpha, to find the timestep of a sigma


def control_rows(sampler: Any, schedule: NoiseSchedule, grid: Grid) -> Steps:
    """Returns the one row of an adaptive run from the grid's first sigma to its last, by a DPMSolver's settings."""
    control = Control(
        sigma_end=grid.sigma[-1],
        atol=sampler.atol,
        rtol=sampler.rtol,
        h_init=sampler.h_init,
        theta=sampler.theta,
        t_err=sampler.t_err * schedule.num_timesteps,
        attempts=len(grid.timestep) - 1,
        denoise_to_zero=sampler.denoise_to_zero,
        log_alpha=-0.5 * np.log(schedule.alphas_cumprod),
    )
    control = Control(*(np.asarray(value, np.float32)[None] for value in control))
    sigma_next = 0.0 if sampler.denoise_to_zero else grid.sigma[-1]
    ends = (np.array([value], np.float32) for value in (grid.timestep[0], grid.sigma[0], sigma_next))
    return Steps(*ends, control, np.ones(1, bool), np.ones(1, bool), np.zeros(1, np.int32))


class Loop(NamedTuple):
    """What goes round: everything but x one number a picture."""

    x: Latent
    lower: Latent  # the lower order's x at the last accepted step, variance-preserving
    lam: jax.Array  # lambda reached
    h: jax.Array  # step size to try next
    attempts: jax.Array  # so far; one number


@dataclasses.dataclass(frozen=True)
class Adaptive:
    """The rule of DPMSolver(method="adaptive"): orders 1 and 2, or 2 and 3."""

    algorithm: str
    order: int
    solver_type: str
    joint: bool

    def init(self, x: Latent) -> State:
        """Returns the state before the run."""
        return State(x=x, base=x, past=())

    def advance(self, denoise: Denoiser, state: State, row: Steps, noise: Callable[[], Latent]) -> State:
        """Returns the state after the whole run."""
        control: Control = row.coef
        b = state.x.shape[0]
        end = -jnp.log(control.sigma_end)
        model = self._model(denoise, row)

        def left(lam: jax.Array) -> jax.Array:  # [b]: whether there is way to go
            return jnp.abs(_timestep(lam, control) - _timestep(end, control)) > control.t_err

        def going(loop: Loop) -> jax.Array:
            return jnp.any(left(loop.lam)) & (loop.attempts < control.attempts)

        def attempt(loop: Loop) -> Loop:
            todo = left(loop.lam)
            h = jnp.where(todo, loop.h, control.h_init)  # a picture that is done goes through the motions
            lower, higher = self._orders(model, loop.x, loop.lam, h)
            alpha = _wide(_alpha(loop.lam + h))
            lower, distance = alpha * lower, alpha * (higher - lower)
            delta = jnp.maximum(control.atol, control.rtol * jnp.maximum(jnp.abs(lower), jnp.abs(loop.lower)))
            error = jnp.sqrt(jnp.mean((distance / delta) ** 2, axis=tuple(range(1, lower.ndim))))
            if self.joint:
                error = jnp.broadcast_to(jnp.max(error), error.shape)
            accept = todo & (error <= 1)
            lam = jnp.where(accept, loop.lam + h, loop.lam)
            return Loop(
                x=jnp.where(_wide(accept), higher, loop.x),
                lower=jnp.where(_wide(accept), lower, loop.lower),
                lam=lam,
                h=jnp.minimum(control.theta * h * error ** (-1 / self.order), end - lam),
                attempts=loop.attempts + 1,
            )

        lam = jnp.broadcast_to(-jnp.log(row.sigma), (b,))
        start = Loop(state.x, _wide(_alpha(lam)) * state.x, lam, jnp.broadcast_to(control.h_init, (b,)), jnp.float32(0))
        loop = jax.lax.while_loop(going, attempt, start)

        def rest(loop: Loop) -> Latent:
            x = self._leg(loop.x, loop.lam, end - loop.lam, [model(loop.x, loop.lam)])
            return jnp.where(_wide(left(loop.lam)), x, loop.x)

        x = jax.lax.cond(jnp.any(left(loop.lam)), rest, lambda loop: loop.x, loop)
        last = row._replace(timestep=_timestep(end, control), sigma=control.sigma_end)
        x = jax.lax.cond(control.denoise_to_zero > 0, lambda x: denoise(x, last), lambda x: x, x)
        return State(x=x, base=state.x, past=())

    def _model(self, denoise: Denoiser, row: Steps) -> Callable[[Latent, jax.Array], Latent]:
        """Returns (x, lambda) -> epsilon or x0."""

        def model(x: Latent, lam: jax.Array) -> Latent:
            sigma = jnp.exp(-lam)
            x0 = denoise(x, row._replace(timestep=_timestep(lam, row.coef), sigma=sigma))
            return (x - x0) / _wide(sigma) if self.algorithm == "dpmsolver" else x0

        return model

    def _orders(self, model: Callable, x: Latent, lam: jax.Array, h: jax.Array) -> tuple[Latent, Latent]:
        """Returns the step's end by the lower and by the higher order."""
        r1, r2 = (1 / 2, None) if self.order == 2 else (1 / 3, 2 / 3)
        m = model(x, lam)
        d = model(self._leg(x, lam, r1 * h, [m]), lam + r1 * h) - m
        second = self._leg(x, lam, h, [m, d / r1], self.solver_type)
        if self.order == 2:
            return self._leg(x, lam, h, [m]), second
        e = model(self._leg(x, lam, r2 * h, [m, d * (r2 / r1)]), lam + r2 * h) - m
        differences = [m, e / r2]
        if self.solver_type == "taylor":
            slope = (r2 * d / r1 - r1 * e / r2) / (r2 - r1)
            differences = [m, slope, 2 * (e / r2 - d / r1) / (r2 - r1)]
        return second, self._leg(x, lam, h, differences)

    def _leg(
        self, x: Latent, lam: jax.Array, h: jax.Array, differences: Sequence[Latent], solver_type: str = "taylor"
    ) -> Latent:
        """Returns x a step h in lambda further: dpm_solver.leg with numbers that are known only now."""
        if self.algorithm == "dpmsolver++":
            a, b, k = jnp.exp(-h), jnp.ones_like(h), -h
        else:
            a, b, k = jnp.ones_like(h), jnp.exp(-lam - h), h
        phi_1 = jnp.expm1(k)
        phi_2 = phi_1 / 2 if solver_type == "dpm_solver" else phi_1 / k - 1
        phi_3 = (phi_1 / k - 1) / k - 1 / 2
        out = _wide(a) * x
        for phi, difference in zip((phi_1, phi_2, phi_3), differences):
            out = out - _wide(b * phi) * difference
        return out


def _wide(values: jax.Array) -> jax.Array:
    """Returns one number a picture [b] as [b, 1, 1, 1]."""
    return values[:, None, None, None]


def _alpha(lam: jax.Array) -> jax.Array:
    return 1 / jnp.sqrt(1 + jnp.exp(-2 * lam))


def _timestep(lam: jax.Array, control: Control) -> jax.Array:
    """Returns the fractional timestep, linear in log alpha between the schedule's."""
    table = control.log_alpha
    y = 0.5 * jnp.log1p(jnp.exp(-2 * lam))
    return jnp.interp(y, table, jnp.arange(table.shape[0], dtype=jnp.float32))
