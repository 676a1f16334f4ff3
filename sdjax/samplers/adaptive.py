"""The adaptive DPM-Solver. It chooses its step size by the difference between a lower and a higher order.

Its number of network calls is known only at the end. So its run is a single row, not a table of weights. The row says
where the run starts and ends and how exact it is; the rule contains a loop. Each image has its own settings and step
size, unless `joint`. A finished image waits for the others.

Source: Lu et al. 2022 (arXiv 2206.00927), appendix C and algorithm 3; dpm_solver_pytorch.py:dpm_solver_adaptive.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.samplers.dpm_solver import DPMSolver
from sdjax.samplers.exponential import leg_weights
from sdjax.samplers.rows import Numbers, Rows, per_image, whole_run
from sdjax.samplers.rule import Denoiser, Draw, Memory, Noisy, Rule, State, choose_images
from sdjax.samplers.sampler import check_positive
from sdjax.samplers.spacing import Grid, after_noise_alone, from_noise_alone
from sdjax.schedule import NoiseSchedule


class Control(NamedTuple):
    """The numbers in a row of the adaptive rule: leaves [n, ...] for one image, [b, ...] in the compiled rule."""

    sigma_end: Numbers  # where the loop ends
    atol: Numbers
    rtol: Numbers
    h_init: Numbers  # first step size, in lambda
    theta: Numbers  # safety factor below 1 on the step size that the error allows
    t_err: Numbers  # an image has arrived when it is this close to the end, in timesteps
    attempts: Numbers  # maximal number of tried steps; then one step of first order goes to the end
    denoise_to_zero: Numbers
    log_alpha: Numbers  # [num_timesteps]: -log alpha, to find the timestep of a sigma


def control_rows(sampler: "DPMSolverAdaptive", schedule: NoiseSchedule, grid: Grid) -> Rows:
    """Returns the one row of an adaptive run, with the sampler's settings, from the grid's first sigma to its last."""
    h_init, attempts = sampler.h_init, len(grid.timestep) - 1
    if from_noise_alone(schedule, grid.timestep[0]):  # else half of the attempts go to nearly pure noise
        h_init = max(h_init, np.log(grid.sigma[0] / schedule.sigma(after_noise_alone(schedule, attempts))))

    def one(value: np.ndarray | float) -> np.ndarray:
        return np.asarray(value, np.float32)[None]

    control = Control(
        sigma_end=one(grid.sigma[-1]),
        atol=one(sampler.atol),
        rtol=one(sampler.rtol),
        h_init=one(h_init),
        theta=one(sampler.theta),
        t_err=one(sampler.t_err * schedule.num_timesteps),
        attempts=one(attempts),
        denoise_to_zero=one(sampler.denoise_to_zero),
        log_alpha=one(-0.5 * np.log(schedule.alphas_cumprod)),
    )
    sigma_next = 0.0 if sampler.denoise_to_zero else grid.sigma[-1]
    return whole_run(grid.timestep[0], grid.sigma[0], sigma_next, control)


FIRST, SECOND, THIRD, REST, ZERO, DONE = range(6)  # what the next call of the network is for


class Loop(NamedTuple):
    """The loop's state between two calls of the network. `attempts` and `stage` are scalars, other numbers [b]."""

    point: Noisy  # where the network is called next
    point_lam: jax.Array  # lambda of that call
    x: Noisy  # x at the start of the present step
    lower: Noisy  # the lower order's x at the last accepted step, variance-preserving
    m: Noisy  # output of the first call in the present step
    d: Noisy  # output of the second call minus that of the first
    lam: jax.Array  # lambda reached
    h: jax.Array  # step size of the present attempt
    attempts: jax.Array  # so far
    stage: jax.Array
    memory: Memory  # the denoiser's


@dataclasses.dataclass(frozen=True)
class Adaptive:
    """The rule of `DPMSolverAdaptive`: orders 1 and 2, or 2 and 3."""

    algorithm: str
    order: int
    solver_type: str
    joint: bool

    def init(self, x: Noisy) -> State:
        """Returns the state before the run."""
        return State(x=x, base=x, past=(), x0=x)

    def advance(self, denoise: Denoiser, state: State, row: Rows, draw: Draw) -> State:
        """Returns the state after the whole run.

        The loop's body calls the network once and then handles the output by stage. So the program contains the network
        only once.
        """
        control = row.coef
        assert isinstance(control, Control)
        end = -jnp.log(control.sigma_end)
        stages = [self._first, self._second, self._third, self._rest, self._zero]

        def body(loop: Loop) -> Loop:
            sigma = jnp.exp(-loop.point_lam)
            at = row._replace(timestep=_timestep(loop.point_lam, control), sigma=sigma)
            denoised, memory = denoise(loop.point, at, loop.memory)
            x0, going = (
                denoised.x0,
                _left(loop.lam, end, control) & ((loop.attempts < control.attempts) | (loop.stage == REST)),
            )
            memory = choose_images(going, memory, loop.memory)
            out = (loop.point - x0) / per_image(sigma, x0) if self.algorithm == "dpmsolver" else x0
            branches = [functools.partial(stage, control=control, end=end) for stage in stages]
            out = jnp.where(loop.stage == ZERO, x0, out)
            return jax.lax.switch(loop.stage, branches, loop._replace(memory=memory), out)

        lam = jnp.where(row.active, -jnp.log(row.sigma), end)  # an image that is not active has arrived
        x, zero = state.x, jnp.zeros_like(state.x)
        start = Loop(
            point=x, point_lam=lam, x=x, lower=per_image(_alpha(lam), x) * x, m=zero, d=zero, lam=lam,
            h=jnp.asarray(control.h_init), attempts=jnp.float32(0), stage=jnp.int32(FIRST), memory=state.memory,
        )  # fmt: skip
        loop = jax.lax.while_loop(lambda loop: loop.stage != DONE, body, start)
        return State(x=loop.x, base=state.x, past=(), x0=loop.x, memory=loop.memory)

    def _first(self, loop: Loop, m: Noisy, control: Control, end: jax.Array) -> Loop:
        leap = self._ratios()[0] * loop.h
        point = self._leg(loop.x, loop.lam, leap, [m])
        return loop._replace(point=point, point_lam=loop.lam + leap, m=m, stage=jnp.int32(SECOND))

    def _second(self, loop: Loop, out: Noisy, control: Control, end: jax.Array) -> Loop:
        r1, r2 = self._ratios()
        d = out - loop.m
        if self.order == 2:
            lower = self._leg(loop.x, loop.lam, loop.h, [loop.m])
            higher = self._leg(loop.x, loop.lam, loop.h, [loop.m, d / r1], self.solver_type)
            return self._judge(loop, control, end, lower, higher)
        leap = r2 * loop.h
        point = self._leg(loop.x, loop.lam, leap, [loop.m, d * (r2 / r1)])
        return loop._replace(point=point, point_lam=loop.lam + leap, d=d, stage=jnp.int32(THIRD))

    def _third(self, loop: Loop, out: Noisy, control: Control, end: jax.Array) -> Loop:
        r1, r2 = self._ratios()
        d, e = loop.d / r1, (out - loop.m) / r2
        lower = self._leg(loop.x, loop.lam, loop.h, [loop.m, d], self.solver_type)
        differences = [loop.m, e]
        if self.solver_type == "taylor":
            differences = [loop.m, (r2 * d - r1 * e) / (r2 - r1), 2 * (e - d) / (r2 - r1)]
        return self._judge(loop, control, end, lower, self._leg(loop.x, loop.lam, loop.h, differences))

    def _rest(self, loop: Loop, m: Noisy, control: Control, end: jax.Array) -> Loop:
        """Returns the loop after one step of first order to the end. It follows an image's last attempt."""
        x = self._leg(loop.x, loop.lam, end - loop.lam, [m])
        x = choose_images(_left(loop.lam, end, control), x, loop.x)
        return self._finish(loop._replace(x=x), control, end)

    def _zero(self, loop: Loop, x0: Noisy, control: Control, end: jax.Array) -> Loop:
        x = choose_images(control.denoise_to_zero > 0, x0, loop.x)
        return loop._replace(x=x, stage=jnp.int32(DONE))

    def _judge(self, loop: Loop, control: Control, end: jax.Array, lower: Noisy, higher: Noisy) -> Loop:
        """Returns the loop after an attempt: the step is accepted if both orders are close. Sets the next step size."""
        # An image that has arrived, or used up its attempts, is computed with the others but does not change
        tries = _left(loop.lam, end, control) & (loop.attempts < control.attempts)
        alpha = per_image(_alpha(loop.lam + loop.h), lower)
        lower, distance = alpha * lower, alpha * (higher - lower)
        size = jnp.maximum(jnp.abs(lower), jnp.abs(loop.lower))
        delta = jnp.maximum(per_image(control.atol, size), per_image(control.rtol, size) * size)
        error = jnp.sqrt(jnp.mean((distance / delta) ** 2, axis=tuple(range(1, lower.ndim))))
        if self.joint:
            error = jnp.broadcast_to(jnp.max(error), error.shape)
        accept = tries & (error <= 1)
        lam = jnp.where(accept, loop.lam + loop.h, loop.lam)
        h = jnp.minimum(control.theta * loop.h * error ** (-1 / self.order), end - lam)
        left = _left(lam, end, control)
        loop = loop._replace(
            x=choose_images(accept, higher, loop.x),
            lower=choose_images(accept, lower, loop.lower),
            lam=lam,
            h=jnp.where(left, h, control.h_init),
            attempts=loop.attempts + 1,
        )
        again = jnp.any(left & (loop.attempts < control.attempts))
        stage = jnp.where(again, FIRST, REST).astype(jnp.int32)
        going = loop._replace(point=loop.x, point_lam=lam, stage=stage)
        return jax.tree.map(lambda a, b: jnp.where(jnp.any(left), a, b), going, self._finish(loop, control, end))

    def _finish(self, loop: Loop, control: Control, end: jax.Array) -> Loop:
        stage = jnp.where(jnp.any(control.denoise_to_zero > 0), ZERO, DONE).astype(jnp.int32)
        return loop._replace(point=loop.x, point_lam=jnp.broadcast_to(end, loop.lam.shape), stage=stage)

    def _ratios(self) -> tuple[float, float]:
        """Returns the positions of the second and third calls in the step, as shares of h."""
        return (1 / 2, 1.0) if self.order == 2 else (1 / 3, 2 / 3)

    def _leg(
        self, x: Noisy, lam: jax.Array, h: jax.Array, differences: Sequence[Noisy], solver_type: str = "taylor"
    ) -> Noisy:
        """Returns x after a step of h in lambda."""
        a, weights = leg_weights(self.algorithm, jnp.exp(-lam), h, solver_type, jnp)
        out = per_image(a, x) * x
        for weight, difference in zip(weights, differences):
            out = out + per_image(weight, x) * difference
        return out


def _left(lam: jax.Array, end: jax.Array, control: Control) -> jax.Array:
    """Returns whether an image has not arrived yet, [b]."""
    return jnp.abs(_timestep(lam, control) - _timestep(end, control)) > control.t_err


def _alpha(lam: jax.Array) -> jax.Array:
    return 1 / jnp.sqrt(1 + jnp.exp(-2 * lam))


def _timestep(lam: jax.Array, control: Control) -> jax.Array:
    """Returns fractional timesteps [b], interpolated linearly in log alpha."""
    y = 0.5 * jnp.log1p(jnp.exp(-2 * lam))
    timesteps = jnp.arange(control.log_alpha.shape[-1], dtype=jnp.float32)
    return jax.vmap(jnp.interp, (0, 0, None))(y, control.log_alpha, timesteps)


@dataclasses.dataclass(frozen=True)
class DPMSolverAdaptive(DPMSolver):
    """The adaptive DPM-Solver: it chooses its step sizes itself and tries at most `num_steps` steps.

    A step is made with the orders p - 1 and p (`order` is p), and accepted if both agree. With x_low and x_high their
    results, and d the larger of `atol` and `rtol` max(|x_low|, |x_low of the last step|), the root mean square E of
    (x_high - x_low) / d is at most 1. E also sets the next step: h' = `theta` h E^(-1 / p). The first step is `h_init`
    in lambda. A picture is finished when it is `t_err` from the end (1 is the length of the whole schedule). `joint`
    uses one step size for the whole batch, as in the authors' code: a picture then depends on the others.

    See `DPMSolver` for the other fields. Source: Lu et al. 2022 (arXiv 2206.00927), appendix C.
    """

    algorithm: Literal["dpmsolver", "dpmsolver++"] = "dpmsolver"
    order: int = 3
    atol: float = 0.0078
    rtol: float = 0.05
    h_init: float = 0.05
    theta: float = 0.9
    t_err: float = 1e-5
    joint: bool = False

    algorithms: ClassVar[tuple[str, ...]] = ("dpmsolver", "dpmsolver++")
    orders: ClassVar[tuple[int, ...]] = (2, 3)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "atol", "rtol", "h_init", "theta", "t_err")

    @property
    def unbounded(self) -> Rule:
        """The compiled part of the sampler, without thresholding."""
        return Adaptive(self.algorithm, self.order, self.solver_type, self.joint)

    def rows(self, schedule: NoiseSchedule, grid: Grid) -> Rows:
        """Returns one row: the whole run."""
        return control_rows(self, schedule, grid)
