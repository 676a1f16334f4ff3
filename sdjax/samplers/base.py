"""What all samplers share: the rows of numbers they make, the rule that carries rows out, the one lax.scan, the noise.

Samplers live in x = x0 + sigma noise. There every sampler that does not choose its steps while it runs is linear: what
it puts out next is a weighted sum of where the step started, what it remembers of the last calls of the network, and
fresh noise. So a sampler is a function that writes these weights down, in float64 on the host, one row a call of the
network; and one compiled rule, `Linear`, carries out the rows of all of them. Neither another number of steps, eta or
spacing nor another sampler compiles anything. (Numerical analysts call such methods general linear methods.)

The adaptive DPM-Solver chooses its steps as it goes; it has a rule of its own (adaptive.py).
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from sdjax.checks.arguments import number, shown
from sdjax.samplers.spacing import SPACINGS, Grid, make_grid
from sdjax.schedule import PREDICTIONS, NoiseSchedule
from sdjax.typing import Key, Latent

# Streams of random numbers of one image: what is drawn for one purpose never depends on how much another one drew
# (SECOND is folded in for all the streams of a second pass)
START, SAMPLER, POSTERIOR, MASK, LEVEL, SECOND, EMBEDDING, PRIOR = range(8)
MEMORY = 4  # calls of the network remembered besides the present one: Adams-Bashforth 4 after PLMS's extra call

Denoiser = Callable[[Latent, "Steps"], Latent]
Constrain = Callable[[Latent, "Steps"], Latent]


class Coef(NamedTuple):
    """The weights of one row; see `Linear.update`."""

    remember: np.ndarray  # [2]: of x and x0 in what is remembered of this call
    correct: np.ndarray  # [1 + MEMORY]: of the remembered calls, this one first, in a correction of the step's start
    base: np.ndarray  # []: of the step's start in the next x
    calls: np.ndarray  # [1 + MEMORY]: of the remembered calls, this one first, in the next x
    noise: np.ndarray  # []: of fresh unit noise in the next x


class Steps(NamedTuple):
    """The rows of a sampling run: the leading axis counts calls of the network; all float32 but the last three."""

    timestep: np.ndarray  # what the network is told, fractional
    sigma: np.ndarray  # the noise in x when the network is called
    sigma_next: np.ndarray  # the noise in x after this row
    coef: Any  # what the rule makes of it: Coef, or adaptive.Control
    starts_step: np.ndarray  # false for a step's second and later calls
    active: np.ndarray  # false for the padding at the end
    index: np.ndarray  # number of the row in the whole run


@struct.dataclass
class State:
    """What a sampler carries from row to row."""

    x: Latent  # where the network is called next
    base: Latent  # where the present step started
    past: tuple[Latent, ...]  # what is remembered of the last MEMORY calls, newest first


class Rule(Protocol):
    """The part of a sampler that is compiled: hashable, equal where the compiled program is the same."""

    def init(self, x: Latent) -> State: ...

    def advance(self, denoise: Denoiser, state: State, row: Steps, noise: Callable[[], Latent]) -> State: ...


@dataclasses.dataclass(frozen=True)
class Linear:
    """Carries out the rows of every sampler whose steps are known beforehand."""

    def init(self, x: Latent) -> State:
        """Returns the state before the first row."""
        return State(x=x, base=x, past=(jnp.zeros_like(x),) * MEMORY)

    def update(self, state: State, row: Steps, x0: Latent, noise: Latent | float) -> State:
        """Returns the state after a row, given the denoiser's x0 at state.x and unit noise."""
        coef = row.coef
        calls = (coef.remember[0] * state.x + coef.remember[1] * x0, *state.past)
        base = jnp.where(row.starts_step, state.x + _weighted(coef.correct, calls), state.base)
        x = coef.base * base + _weighted(coef.calls, calls) + coef.noise * noise
        return State(x=x, base=base, past=calls[:MEMORY])

    def advance(self, denoise: Denoiser, state: State, row: Steps, noise: Callable[[], Latent]) -> State:
        """Returns the state after calling the denoiser once; noise is drawn only where the row uses some."""
        drawn = jax.lax.cond(row.coef.noise != 0, noise, lambda: jnp.zeros_like(state.x))
        return self.update(state, row, denoise(state.x, row), drawn)


def _weighted(weights: jax.Array, values: Sequence[Latent]) -> Latent:
    return sum(weights[i] * value for i, value in enumerate(values))


@dataclasses.dataclass(frozen=True)
class Sampler:
    """What a user chooses: a method with its settings. Only `rule` enters compiled programs.

    `spacing` is a name of `sdjax.samplers.spacing.SPACINGS`; `end` says where the last step leads: "sigma_min", the
    first timestep's small noise, where ldm's samplers stop, or "zero", no noise at all.
    """

    spacing: str = "even"
    end: Literal["zero", "sigma_min"] = "sigma_min"

    # Whether pure noise enters with the variance of a noisy latent, 1 + sigma^2 (ldm's samplers, which take x_T as it
    # is), or with sigma^2 alone (k-diffusion's)
    variance_preserving: ClassVar[bool] = True

    def __post_init__(self) -> None:
        choose("spacing", self.spacing, SPACINGS)
        choose("end", self.end, ("zero", "sigma_min"))

    @property
    def rule(self) -> Rule:
        """What is compiled."""
        return Linear()

    def grid(self, schedule: NoiseSchedule, num_steps: int, *, skip: int = 0) -> Grid:
        """Returns where the steps start and end, without the first `skip` of them."""
        return make_grid(self.spacing, schedule, num_steps, end=self.end, skip=skip)

    def steps(self, schedule: NoiseSchedule, num_steps: int, *, skip: int = 0) -> Steps:
        """Returns the rows of a run of `num_steps` steps, without the first `skip` (image to image starts later).

        Raises ValueError for numbers out of range.
        """
        raise NotImplementedError

    def initial(self, noise: Latent, rows: Steps) -> Latent:
        """Returns the x to start from, given unit noise."""
        sigma = rows.sigma[0]
        return noise * ((1 + sigma**2) ** 0.5 if self.variance_preserving else sigma)

    def final(self, state: State, rows: Steps) -> Latent:
        """Returns the latent after the last row: x in the reference's scale, divided by sqrt(1 + sigma^2)."""
        return state.x / (1 + rows.sigma_next[-1] ** 2) ** 0.5


def choose(name: str, value: str, known: Any) -> None:
    """Raises ValueError, listing the known values, unless `value` is one of them."""
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"unknown {name} {value!r}; the known ones are {', '.join(map(str, known))}")


def check_eta(eta: float) -> None:
    """Raises ValueError unless eta is a finite number that is not negative."""
    try:
        number("eta", eta, 0)
    except ValueError:
        raise ValueError(f"eta is a finite number from 0 up; got {shown(eta)}") from None


def row(
    timestep: float,
    sigma: float,
    sigma_next: float,
    *,
    calls: Sequence[float],
    base: float = 1.0,
    noise: float = 0.0,
    remember: str = "x0",
    correct: Sequence[float] = (),
    starts_step: bool = True,
) -> Steps:
    """Returns one row, float64: next x = base * start of the step + sum of calls[i] * i-th last call + noise * z.

    `remember` says what of a call is weighed: "x0", "epsilon" or "v", whatever the network predicts. `correct` adds
    such a sum to where the step starts.
    """
    of_x, of_out = PREDICTIONS[remember].x0(sigma)  # x0 = of_x x + of_out out, solved for out
    weights = [np.pad(np.asarray(w, np.float64), (0, 1 + MEMORY - len(w))) for w in (correct, calls)]
    coef = Coef(np.array([-of_x / of_out, 1 / of_out]), weights[0], np.float64(base), weights[1], np.float64(noise))
    return Steps(timestep, sigma, sigma_next, coef, starts_step, True, 0)


def stack(rows: Sequence[Steps]) -> Steps:
    """Returns the rows as one Steps, numbered, in float32."""
    steps = jax.tree.map(lambda *leaves: np.stack(leaves).astype(np.float32), *rows)
    index = np.arange(len(rows), dtype=np.int32)
    return steps._replace(starts_step=steps.starts_step > 0, active=index >= 0, index=index)


def chunks(rows: Steps, size: int) -> Iterator[Steps]:
    """Yields the rows, `size` at a time; the last chunk is filled up with rows that are not active."""
    n = len(rows.timestep)
    for start in range(0, n, size):
        part = jax.tree.map(lambda a, start=start: a[start : start + size], rows)
        missing = size - len(part.timestep)
        if missing:
            part = jax.tree.map(lambda a, k=missing: np.concatenate([a, np.repeat(a[-1:], k, axis=0)]), part)
            part.active[-missing:] = False
        yield part


def scan_rows(
    rule: Rule,
    denoise: Denoiser,
    state: State,
    rows: Steps,
    noise: Key | Latent,
    constrain: Constrain | None = None,
) -> State:
    """Returns the state after `rows`, by the one lax.scan; rows that are not active cost nothing.

    `noise` is one key an image, [b], or the noise itself, one unit normal latent a row of the whole run:
    float [rows, b, h, w, c]. `constrain(x, row)` gives the x to go on from, where a step starts.
    """

    def draw(row: Steps) -> Callable[[], Latent]:
        if jnp.issubdtype(noise.dtype, jax.dtypes.prng_key):
            return lambda: draw_noise(noise, SAMPLER, row.index, state.x.shape[1:])
        return lambda: noise[row.index]

    def step(state: State, row: Steps) -> State:
        if constrain is not None:
            x = jax.lax.cond(row.starts_step, lambda x: constrain(x, row), lambda x: x, state.x)
            state = state.replace(x=x)
        return rule.advance(denoise, state, row, draw(row))

    def body(state: State, row: Steps) -> tuple[State, None]:
        return jax.lax.cond(row.active, step, lambda state, row: state, state, row), None

    return jax.lax.scan(body, state, rows)[0]


def draw_noise(keys: Key, stream: int, index: jax.Array | int, shape: Sequence[int]) -> Latent:
    """Returns unit normal noise, float32 [b, *shape]: entry i depends on keys[i], stream and index alone.

    It is the same bit for bit whatever the other keys, their number, and the devices it is drawn on.
    """

    def one(key: Key) -> Latent:
        return jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, stream), index), tuple(shape), jnp.float32)

    return jax.vmap(one)(keys)


def sample(
    sampler: Sampler, denoise: Denoiser, x: Latent, rows: Steps, noise: Key | Latent, constrain: Constrain | None = None
) -> Latent:
    """Returns the latent that a sampler makes of x, in the reference's scale: start, rows and end in one call."""
    rule = sampler.rule
    return sampler.final(scan_rows(rule, denoise, rule.init(x), rows, noise, constrain), rows)
