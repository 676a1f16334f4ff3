"""The adaptive DPM-Solver: it compares a lower order with a higher one and chooses its steps by the difference.

How many calls of the network it makes is known only when it is done, so it is no table of weights: its single row says
where it starts, ends and how exact it shall be, and its rule holds a loop of its own. Each picture has a step size of
its own, unless `joint`; a picture that is done waits for the others.

Source: Lu et al. 2022 (arXiv 2206.00927), appendix C and algorithm 3; dpm_solver_pytorch.py:dpm_solver_adaptive.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.samplers.base import Denoiser, State, Steps
from sdjax.samplers.spacing import Grid, after_noise_alone, from_noise_alone
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
    h_init, attempts = sampler.h_init, len(grid.timestep) - 1
    if from_noise_alone(schedule, grid.timestep[0]):  # else half of the attempts pass before anything can be seen
        h_init = max(h_init, np.log(grid.sigma[0] / schedule.sigma(after_noise_alone(schedule, attempts))))
    control = Control(
        sigma_end=grid.sigma[-1],
        atol=sampler.atol,
        rtol=sampler.rtol,
        h_init=h_init,
        theta=sampler.theta,
        t_err=sampler.t_err * schedule.num_timesteps,
        attempts=attempts,
        denoise_to_zero=sampler.denoise_to_zero,
        log_alpha=-0.5 * np.log(schedule.alphas_cumprod),
    )
    control = Control(*(np.asarray(value, np.float32)[None] for value in control))
    sigma_next = 0.0 if sampler.denoise_to_zero else grid.sigma[-1]
    ends = (np.array([value], np.float32) for value in (grid.timestep[0], grid.sigma[0], sigma_next))
    return Steps(*ends, control, np.ones(1, bool), np.ones(1, bool), np.zeros(1, np.int32))


FIRST, SECOND, THIRD, REST, ZERO, DONE = range(6)  # what the next call of the network is for


class Loop(NamedTuple):
    """What goes round, once a call of the network: numbers are one a picture, but for the last two."""

    point: Latent  # where the network is called next
    point_lam: jax.Array  # and at which lambda
    x: Latent  # where the present step starts
    lower: Latent  # the lower order's x at the last accepted step, variance-preserving
    m: Latent  # the first call's answer in the present step
    d: Latent  # the second one's difference from it
    lam: jax.Array  # lambda reached
    h: jax.Array  # step size that is tried
    attempts: jax.Array  # so far
    stage: jax.Array


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
        """Returns the state after the whole run.

        The loop's body is one call of the network and then what the stage makes of it, so that the program holds the
        network once.
        """
        control: Control = row.coef
        end = -jnp.log(control.sigma_end)
        stages = [self._first, self._second, self._third, self._rest, self._zero]

        def body(loop: Loop) -> Loop:
            sigma = jnp.exp(-loop.point_lam)
            x0 = denoise(loop.point, row._replace(timestep=_timestep(loop.point_lam, control), sigma=sigma))
            out = (loop.point - x0) / _wide(sigma) if self.algorithm == "dpmsolver" else x0
            branches = [functools.partial(stage, control=control, end=end) for stage in stages]
            return jax.lax.switch(loop.stage, branches, loop, jnp.where(loop.stage == ZERO, x0, out))

        lam = jnp.broadcast_to(-jnp.log(row.sigma), state.x.shape[:1])
        h = jnp.broadcast_to(control.h_init, lam.shape)
        x, zero = state.x, jnp.zeros_like(state.x)
        start = Loop(x, lam, x, _wide(_alpha(lam)) * x, zero, zero, lam, h, jnp.float32(0), jnp.int32(FIRST))
        loop = jax.lax.while_loop(lambda loop: loop.stage != DONE, body, start)
        return State(x=loop.x, base=state.x, past=())

    def _first(self, loop: Loop, m: Latent, control: Control, end: jax.Array) -> Loop:
        leap = self._ratios()[0] * loop.h
        point = self._leg(loop.x, loop.lam, leap, [m])
        return loop._replace(point=point, point_lam=loop.lam + leap, m=m, stage=jnp.int32(SECOND))

    def _second(self, loop: Loop, out: Latent, control: Control, end: jax.Array) -> Loop:
        r1, r2 = self._ratios()
        d = out - loop.m
        if self.order == 2:
            lower = self._leg(loop.x, loop.lam, loop.h, [loop.m])
            higher = self._leg(loop.x, loop.lam, loop.h, [loop.m, d / r1], self.solver_type)
            return self._judge(loop, control, end, lower, higher)
        leap = r2 * loop.h
        point = self._leg(loop.x, loop.lam, leap, [loop.m, d * (r2 / r1)])
        return loop._replace(point=point, point_lam=loop.lam + leap, d=d, stage=jnp.int32(THIRD))

    def _third(self, loop: Loop, out: Latent, control: Control, end: jax.Array) -> Loop:
        r1, r2 = self._ratios()
        d, e = loop.d / r1, (out - loop.m) / r2
        lower = self._leg(loop.x, loop.lam, loop.h, [loop.m, d], self.solver_type)
        differences = [loop.m, e]
        if self.solver_type == "taylor":
            differences = [loop.m, (r2 * d - r1 * e) / (r2 - r1), 2 * (e - d) / (r2 - r1)]
        return self._judge(loop, control, end, lower, self._leg(loop.x, loop.lam, loop.h, differences))

    def _rest(self, loop: Loop, m: Latent, control: Control, end: jax.Array) -> Loop:
        """One step of first order over what is left after the last attempt."""
        x = self._leg(loop.x, loop.lam, end - loop.lam, [m])
        x = jnp.where(_wide(_left(loop.lam, end, control)), x, loop.x)
        return self._finish(loop._replace(x=x), control, end)

    def _zero(self, loop: Loop, x0: Latent, control: Control, end: jax.Array) -> Loop:
        return loop._replace(x=x0, stage=jnp.int32(DONE))

    def _judge(self, loop: Loop, control: Control, end: jax.Array, lower: Latent, higher: Latent) -> Loop:
        """Returns the loop after a step that was tried: taken where the two orders are close; the next size."""
        todo = _left(loop.lam, end, control)  # a picture that is done goes through the motions
        alpha = _wide(_alpha(loop.lam + loop.h))
        lower, distance = alpha * lower, alpha * (higher - lower)
        delta = jnp.maximum(control.atol, control.rtol * jnp.maximum(jnp.abs(lower), jnp.abs(loop.lower)))
        error = jnp.sqrt(jnp.mean((distance / delta) ** 2, axis=tuple(range(1, lower.ndim))))
        if self.joint:
            error = jnp.broadcast_to(jnp.max(error), error.shape)
        accept = todo & (error <= 1)
        lam = jnp.where(accept, loop.lam + loop.h, loop.lam)
        h = jnp.minimum(control.theta * loop.h * error ** (-1 / self.order), end - lam)
        loop = loop._replace(
            x=jnp.where(_wide(accept), higher, loop.x),
            lower=jnp.where(_wide(accept), lower, loop.lower),
            lam=lam,
            h=jnp.where(_left(lam, end, control), h, control.h_init),
            attempts=loop.attempts + 1,
        )
        finished = self._finish(loop, control, end)
        more = jnp.where(loop.attempts < control.attempts, FIRST, REST)
        again = loop._replace(point=loop.x, point_lam=lam, stage=more.astype(jnp.int32))
        going = jnp.any(_left(lam, end, control))
        return jax.tree.map(lambda a, b: jnp.where(going, a, b), again, finished)

    def _finish(self, loop: Loop, control: Control, end: jax.Array) -> Loop:
        stage = jnp.where(control.denoise_to_zero > 0, ZERO, DONE).astype(jnp.int32)
        return loop._replace(point=loop.x, point_lam=jnp.broadcast_to(end, loop.lam.shape), stage=stage)

    def _ratios(self) -> tuple[float, float]:
        """Returns where in the step the second and third calls are."""
        return (1 / 2, 1.0) if self.order == 2 else (1 / 3, 2 / 3)

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


def _left(lam: jax.Array, end: jax.Array, control: Control) -> jax.Array:
    """Returns whether there is way to go, one answer a picture."""
    return jnp.abs(_timestep(lam, control) - _timestep(end, control)) > control.t_err


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
