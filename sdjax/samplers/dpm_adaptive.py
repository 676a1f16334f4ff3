"""k-diffusion's adaptive DPM-Solver: a controller chooses the step size from the errors of the last three attempts.

Like adaptive.py's, its run is a single row, and the rule contains a loop. Time is -log sigma, h the step.

Source: k-diffusion's sample_dpm_adaptive; Lu et al. 2022 (arXiv 2206.00927), appendix C, for the error; Soderlind 2003,
"Digital filters in adaptive time-stepping", for the controller.
"""

import dataclasses
import functools
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.checks.arguments import number
from sdjax.checks.effects import needs, note_effects
from sdjax.samplers.exponential import leg_weights
from sdjax.samplers.rows import Numbers, Rows, per_image, whole_run
from sdjax.samplers.rule import Denoiser, Draw, Memory, Noisy, State, choose_images
from sdjax.samplers.sampler import End, Sampler, check_eta, check_numbers, check_positive
from sdjax.samplers.spacing import Grid, after_noise_alone, from_noise_alone
from sdjax.schedule import NoiseSchedule

ARRIVED = 1e-5  # so near to the end, in log sigma, a run is over
FIRST, SECOND, THIRD, REST, DONE = range(5)  # what the next call of the network is for


class PIDControl(NamedTuple):
    """The numbers in a row of the rule: leaves [n, ...] for one image, [b, ...] in the compiled rule."""

    sigma_end: Numbers  # where the loop ends
    rtol: Numbers
    atol: Numbers
    h_init: Numbers  # first step size
    powers: Numbers  # [3]: of the last three inverse errors in the factor of the step size
    accept_safety: Numbers  # an attempt whose factor is below is made again
    eta: Numbers
    s_noise: Numbers
    attempts: Numbers  # maximal number of tried steps; then one step of first order goes to the end
    log_sigma: Numbers  # [num_timesteps], to find the timestep of a sigma


class Loop(NamedTuple):
    """The loop's state between two calls of the network. `attempts` and `stage` are scalars, other numbers [b, ...]."""

    point: Noisy  # where the network is called next
    point_time: jax.Array
    x: Noisy  # x at the start of the present step
    lower: Noisy  # the lower order's x at the last accepted step
    m: Noisy  # epsilon of the first call in the present step
    d: Noisy  # epsilon of the second call minus that of the first
    time: jax.Array  # reached
    h: jax.Array  # step size that the controller proposes
    inverse_errors: jax.Array  # [b, 3]
    accepted: jax.Array  # steps so far
    attempts: jax.Array  # so far
    stage: jax.Array
    memory: Memory  # the denoiser's


@dataclasses.dataclass(frozen=True)
class PIDAdaptive:
    """The rule of DPMAdaptive: orders 1 and 2, or 2 and 3. The numbers of images are their own, unless `joint`."""

    order: int
    joint: bool

    def init(self, x: Noisy) -> State:
        """Returns the state before the run."""
        return State(x=x, base=x, past=(), x0=x)

    def advance(self, denoise: Denoiser, state: State, row: Rows, draw: Draw) -> State:
        """Returns the state after the whole run. The program contains the network once: see `Adaptive.advance`."""
        control = row.coef
        assert isinstance(control, PIDControl)
        end = -jnp.log(control.sigma_end)
        stages = (self._first, self._second, self._third, self._rest)

        def body(loop: Loop) -> Loop:
            sigma = jnp.exp(-loop.point_time)
            timestep = _timestep(sigma, jnp.asarray(control.log_sigma))
            denoised, memory = denoise(loop.point, row._replace(timestep=timestep, sigma=sigma), loop.memory)
            going = _left(loop.time, end) & ((loop.attempts < control.attempts) | (loop.stage == REST))
            memory = choose_images(going, memory, loop.memory)
            epsilon = (loop.point - denoised.x0) / per_image(sigma, loop.x)
            branches = [functools.partial(stage, control=control, end=end, row=row, draw=draw) for stage in stages]
            return jax.lax.switch(loop.stage, branches, loop._replace(memory=memory), epsilon)

        time = jnp.where(row.active, -jnp.log(row.sigma), end)  # an image that is not active has arrived
        x, zero = state.x, jnp.zeros_like(state.x)
        start = Loop(
            point=x, point_time=time, x=x, lower=x, m=zero, d=zero, time=time, h=jnp.asarray(control.h_init),
            inverse_errors=jnp.zeros((*time.shape, 3)), accepted=jnp.zeros(time.shape, jnp.int32),
            attempts=jnp.float32(0), stage=jnp.where(jnp.any(control.attempts > 0), FIRST, REST).astype(jnp.int32),
            memory=state.memory,
        )  # fmt: skip
        loop = jax.lax.while_loop(lambda loop: loop.stage != DONE, body, start)
        return State(x=loop.x, base=state.x, past=(), x0=loop.x, memory=loop.memory)

    def _step(self, loop: Loop, control: PIDControl, end: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns where the step ends, the length of its deterministic part, and the noise to add after it."""
        after = jnp.minimum(end, loop.time + loop.h)
        sigma, sigma_next, last = jnp.exp(-loop.time), jnp.exp(-after), jnp.exp(-end)
        shrunk = jnp.sqrt(jnp.maximum(1 - (sigma_next / sigma) ** 2, 0))
        up = jnp.minimum(sigma_next, control.eta * sigma_next * shrunk)
        down = jnp.maximum(jnp.sqrt(jnp.maximum(sigma_next**2 - up**2, 0)), last)
        h = jnp.where(control.eta > 0, -jnp.log(down), after) - loop.time
        h = jnp.maximum(h, ARRIVED)  # an image that has arrived is computed with the others: no 0 / 0
        return after, h, jnp.where(control.eta > 0, jnp.sqrt(jnp.maximum(sigma_next**2 - down**2, 0)), 0)

    def _first(self, loop: Loop, m: Noisy, *, control: PIDControl, end: jax.Array, row: Rows, draw: Draw) -> Loop:
        leap = self._ratios()[0] * self._step(loop, control, end)[1]
        point = _leg(loop.x, loop.time, leap, [m])
        return loop._replace(point=point, point_time=loop.time + leap, m=m, stage=jnp.int32(SECOND))

    def _second(self, loop: Loop, out: Noisy, *, control: PIDControl, end: jax.Array, row: Rows, draw: Draw) -> Loop:
        r1, r2 = self._ratios()
        h, d = self._step(loop, control, end)[1], out - loop.m
        if self.order == 2:
            lower = _leg(loop.x, loop.time, h, [loop.m])
            higher = _leg(loop.x, loop.time, h, [loop.m, d / r1], "dpm_solver")
            return self._judge(loop, lower, higher, control, end, row, draw)
        leap = r2 * h
        point = _leg(loop.x, loop.time, leap, [loop.m, d * (r2 / r1)])
        return loop._replace(point=point, point_time=loop.time + leap, d=d, stage=jnp.int32(THIRD))

    def _third(self, loop: Loop, out: Noisy, *, control: PIDControl, end: jax.Array, row: Rows, draw: Draw) -> Loop:
        r1, r2 = self._ratios()
        h = self._step(loop, control, end)[1]
        lower = _leg(loop.x, loop.time, h, [loop.m, loop.d / r1], "dpm_solver")
        higher = _leg(loop.x, loop.time, h, [loop.m, (out - loop.m) / r2])
        return self._judge(loop, lower, higher, control, end, row, draw)

    def _rest(self, loop: Loop, m: Noisy, *, control: PIDControl, end: jax.Array, row: Rows, draw: Draw) -> Loop:
        """Returns the loop after one step of first order to the end. It follows an image's last attempt."""
        x = _leg(loop.x, loop.time, end - loop.time, [m])
        return loop._replace(x=choose_images(_left(loop.time, end), x, loop.x), stage=jnp.int32(DONE))

    def _judge(
        self, loop: Loop, lower: Noisy, higher: Noisy, control: PIDControl, end: jax.Array, row: Rows, draw: Draw
    ) -> Loop:
        """Returns the loop after an attempt, with the controller's next step size."""
        # An image that has arrived, or used up its attempts, is computed with the others but does not change
        tries = _left(loop.time, end) & (loop.attempts < control.attempts)
        size = jnp.maximum(jnp.abs(lower), jnp.abs(loop.lower))
        delta = jnp.maximum(per_image(control.atol, size), per_image(control.rtol, size) * size)
        square = jnp.mean(((lower - higher) / delta) ** 2, axis=tuple(range(1, lower.ndim)))
        if self.joint:
            square = jnp.broadcast_to(jnp.mean(square), square.shape)
        newest = 1 / (jnp.sqrt(square) + 1e-8)
        before = jnp.where((loop.attempts == 0), newest[:, None], loop.inverse_errors)
        errors = jnp.concatenate([newest[:, None], before[:, 1:]], axis=1)
        factor = 1 + jnp.arctan(jnp.prod(errors ** jnp.asarray(control.powers), axis=1) - 1)
        accept = tries & (factor >= control.accept_safety)
        after, _, up = self._step(loop, control, end)
        drawn = jax.lax.cond(
            jnp.any(accept & (up * control.s_noise > 0)),
            lambda: draw(row._replace(index=loop.accepted, interval=jnp.exp(-jnp.stack([loop.time, after], 1)))),
            lambda: jnp.zeros_like(higher),
        )  # fmt: skip
        x = higher + per_image(up * control.s_noise, higher) * drawn
        time = jnp.where(accept, after, loop.time)
        attempts = loop.attempts + 1
        left = _left(time, end)
        again = jnp.any(left & (attempts < control.attempts))
        shifted = errors[:, jnp.array([0, 0, 1])]
        loop = loop._replace(
            x=choose_images(accept, x, loop.x),
            lower=choose_images(accept, lower, loop.lower),
            time=time,
            h=jnp.where(tries, loop.h * factor, loop.h),
            inverse_errors=jnp.where(accept[:, None], shifted, errors),
            accepted=loop.accepted + accept,
            attempts=attempts,
            stage=jnp.where(again, FIRST, jnp.where(jnp.any(left), REST, DONE)).astype(jnp.int32),
        )
        return loop._replace(point=loop.x, point_time=time)

    def _ratios(self) -> tuple[float, float]:
        """Returns the positions of the second and third calls in the step, as shares of h."""
        return (1 / 2, 1.0) if self.order == 2 else (1 / 3, 2 / 3)


@dataclasses.dataclass(frozen=True)
class DPMAdaptive(Sampler):
    """DPM-Solver with adaptive steps of `order` 2 or 3, as in k-diffusion. The number of steps is only a limit.

    An attempt of orders p - 1 and p, with results x_low and x_high, has the error

    E = rms((x_low - x_high) / max(atol, rtol max(|x_low|, |x_low_previous|))).

    The next step size is h f with f = 1 + atan(E^-b_1 E_1^-b_2 E_2^-b_3 - 1), where E_1 and E_2 are the errors of the
    accepted steps before, and p b_1 = pcoeff + icoeff + dcoeff, p b_2 = -(pcoeff + 2 dcoeff), p b_3 = dcoeff (with eta,
    1.5 replaces p). The attempt is accepted if f is at least `accept_safety`. With eta a step goes down to sigma_down
    and adds noise up to sigma'. `joint` uses one step size for the whole batch, as the reference does: a picture then
    depends on the others.
    """

    spacing: str = "exponential"
    end: End = "sigma_min"
    order: int = 3
    rtol: float = 0.05
    atol: float = 0.0078
    h_init: float = 0.05
    pcoeff: float = 0.0
    icoeff: float = 1.0
    dcoeff: float = 0.0
    accept_safety: float = 0.81
    eta: float = 0.0
    s_noise: float = needs(1.0, lambda s: s.eta > 0, "with eta 0")
    joint: bool = False
    variance_preserving: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_eta(self.eta)
        check_numbers(self, "s_noise")
        if self.order not in (2, 3):
            raise ValueError(f"the adaptive method has order 2 or 3; got {self.order}")
        check_positive(self, "rtol", "atol", "h_init", "accept_safety")
        for name in ("pcoeff", "icoeff", "dcoeff"):
            number(name, getattr(self, name))
        note_effects(self)

    @property
    def rule(self) -> PIDAdaptive:
        """The compiled part of the sampler."""
        return PIDAdaptive(self.order, self.joint)

    def rows(self, schedule: NoiseSchedule, grid: Grid) -> Rows:
        """Returns the one row of a run from the grid's first sigma to its last above 0.

        A run from pure noise has a row before it, a step of first order without attempts.
        """
        attempts, timestep = len(grid.timestep) - 1, grid.timestep[0]
        last = grid.sigma[grid.sigma > 0][-1]
        if attempts == 1 or not from_noise_alone(schedule, timestep):
            return whole_run(timestep, grid.sigma[0], last, self._control(schedule, last, attempts))
        then = after_noise_alone(schedule, attempts)
        sigma = float(schedule.sigma(then, "log_sigma"))
        first = whole_run(timestep, grid.sigma[0], sigma, self._control(schedule, sigma, 0))
        rest = whole_run(then, sigma, last, self._control(schedule, last, attempts - 1))
        rows = jax.tree.map(lambda a, b: np.concatenate([a, b]), first, rest)
        return rows._replace(index=np.arange(2, dtype=np.int32))

    def _control(self, schedule: NoiseSchedule, sigma_end: float, attempts: int) -> PIDControl:
        p, i, d = self.pcoeff, self.icoeff, self.dcoeff
        powers = np.array([p + i + d, -(p + 2 * d), d]) / (1.5 if self.eta > 0 else self.order)

        def one(value: np.ndarray | float) -> np.ndarray:
            return np.asarray(value, np.float32)[None]

        return PIDControl(
            sigma_end=one(sigma_end), rtol=one(self.rtol), atol=one(self.atol), h_init=one(self.h_init),
            powers=one(powers), accept_safety=one(self.accept_safety), eta=one(self.eta),
            s_noise=one(self.s_noise if self.eta > 0 else 0), attempts=one(attempts),
            log_sigma=one(np.log(schedule.sigmas)),
        )  # fmt: skip


def _left(time: jax.Array, end: jax.Array) -> jax.Array:
    """Returns whether an image has not arrived yet, [b]."""
    return time < end - ARRIVED


def _leg(x: Noisy, time: jax.Array, h: jax.Array, differences: list[Noisy], solver_type: str = "taylor") -> Noisy:
    """Returns x after a step of h, by epsilon and its differences."""
    a, weights = leg_weights("dpmsolver", jnp.exp(-time), h, solver_type, jnp)
    out = per_image(a, x) * x
    for weight, difference in zip(weights, differences):
        out = out + per_image(weight, x) * difference
    return out


def _timestep(sigma: jax.Array, log_sigma: jax.Array) -> jax.Array:
    """Returns fractional timesteps [b], interpolated linearly in log sigma."""
    timesteps = jnp.arange(log_sigma.shape[-1], dtype=jnp.float32)
    return jax.vmap(jnp.interp, (0, 0, None))(jnp.log(sigma), log_sigma, timesteps)
