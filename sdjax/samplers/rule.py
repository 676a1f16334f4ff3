"""Runs rows: the one linear rule of all samplers with known steps, and the one `lax.scan`.

Samplers do not know the network. They call a denoiser, (x, row, memory) -> (x0, memory). The scan carries the memory.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, PyTree

from sdjax.samplers.noise import SAMPLER, MadeNoise, brownian_noise, draw_noise
from sdjax.samplers.rows import MEMORY, Coef, Numbers, Rows, first_sigma, per_image
from sdjax.typing import Keys

Noisy: TypeAlias = Float[Array, "b ..."]  # a latent, or the prior's embedding
Memory: TypeAlias = PyTree  # arrays with the batch as their first axis; () if nothing is remembered
Tree = TypeVar("Tree", bound=PyTree)


class Denoised(NamedTuple):
    """The result of a denoiser: the guided x0, and the x0 of the conditional and of the unconditional branch.

    Without guidance all three are the same.
    """

    x0: Noisy
    conditional: Noisy
    unconditional: Noisy


class Denoiser(Protocol):
    """The network as samplers see it."""

    def init(self, x: Noisy) -> Memory:
        """Returns the memory before the first call."""
        ...

    def __call__(self, x: Noisy, row: Rows, memory: Memory) -> tuple[Denoised, Memory]:
        """Returns x0 for the noisy x of this row, and the memory for the next call."""
        ...


Constrain: TypeAlias = Callable[[Noisy, Rows], Noisy]
Draw: TypeAlias = Callable[[Rows], Noisy]  # unit noise for a row, whose leaves are [b, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Stateless:
    """The denoiser of a function (x, row) -> x0: no guidance, no memory."""

    function: Callable[[Noisy, Rows], Noisy]

    def init(self, x: Noisy) -> Memory:
        """Returns no memory."""
        return ()

    def __call__(self, x: Noisy, row: Rows, memory: Memory) -> tuple[Denoised, Memory]:
        """Returns the function's x0."""
        x0 = self.function(x, row)
        return Denoised(x0, x0, x0), memory


@dataclasses.dataclass(frozen=True, eq=False)
class Changed:
    """A denoiser with a function applied to its result."""

    denoiser: Denoiser
    change: Callable[[Denoised], Denoised]

    def init(self, x: Noisy) -> Memory:
        """Returns the denoiser's memory."""
        return self.denoiser.init(x)

    def __call__(self, x: Noisy, row: Rows, memory: Memory) -> tuple[Denoised, Memory]:
        """Returns the changed result."""
        denoised, memory = self.denoiser(x, row, memory)
        return self.change(denoised), memory


@struct.dataclass
class State:
    """The state that the scan carries from row to row. All arrays have the batch as their first axis."""

    x: Noisy  # where the network is called next
    base: Noisy  # x at the start of the present step
    past: tuple[Noisy, ...]  # remembered results of the last calls, newest first
    x0: Noisy  # the denoiser's last x0: previews show it
    memory: Memory = ()  # the denoiser's


class Rule(Protocol):
    """The compiled part of a sampler. Rules that are equal share a compiled program."""

    def __hash__(self) -> int: ...

    def init(self, x: Noisy) -> State:
        """Returns the state before the first row, without a denoiser's memory."""
        ...

    def advance(self, denoise: Denoiser, state: State, row: Rows, draw: Draw) -> State:
        """Returns the state after a row, whose leaves are [b, ...]. The result for inactive images is not used."""
        ...


@dataclasses.dataclass(frozen=True)
class Linear:
    """The rule of every sampler whose steps are known beforehand. It remembers `memory` earlier calls."""

    memory: int = MEMORY

    def init(self, x: Noisy) -> State:
        """Returns the state before the first row."""
        return State(x=x, base=x, past=(jnp.zeros_like(x),) * self.memory, x0=x)

    def update(self, state: State, row: Rows, denoised: Denoised, noise: Noisy | float) -> State:
        """Returns the state after a row, given the denoiser's result for state.x, and unit noise."""
        coef = row.coef
        assert isinstance(coef, Coef)
        values = (state.x, denoised.x0, denoised.unconditional)
        call = _weighted(coef.remember, values)
        calls = (call, *state.past)
        start = state.x + _weighted(coef.correct, calls)
        base = jnp.where(per_image(row.starts_step, start), start, state.base)
        x = per_image(coef.base, base) * base + _weighted(coef.calls, calls) + per_image(coef.noise, base) * noise
        beside = jnp.any(coef.own != 0, axis=-1)
        x = choose_images(beside, x + _weighted(coef.own, values), x)
        return dataclasses.replace(state, x=x, base=base, past=calls[: self.memory])

    def advance(self, denoise: Denoiser, state: State, row: Rows, draw: Draw) -> State:
        """Returns the state after one call of the denoiser. Noise is drawn only if an image of the batch uses it."""
        coef = row.coef
        assert isinstance(coef, Coef)
        uses = (coef.noise != 0) | (coef.churn != 0)
        drawn = jax.lax.cond(
            jnp.any(uses & row.active), lambda: draw(row), lambda: jnp.zeros_like(state.x)
        )  # fmt: skip
        x = choose_images(coef.churn != 0, state.x + per_image(coef.churn, drawn) * drawn, state.x)
        state = dataclasses.replace(state, x=x)
        denoised, memory = denoise(x, row, state.memory)
        return dataclasses.replace(self.update(state, row, denoised, drawn), x0=denoised.x0, memory=memory)


def _weighted(weights: Numbers, values: Sequence[Noisy]) -> Noisy:
    """Returns the sum of the values, weighted by `weights` [b, len(values)]."""
    total = per_image(weights[:, 0], values[0]) * values[0]
    for i, value in enumerate(values[1:], 1):
        total = total + per_image(weights[:, i], value) * value
    return total


def scan_rows(
    rule: Rule,
    denoise: Denoiser,
    state: State,
    rows: Rows,
    noise: Keys | Float[Array, "n b ..."],
    constrain: Constrain | None = None,
    made: MadeNoise | None = None,
) -> State:
    """Returns the state after the rows of a batch, [n, b, ...], by the one lax.scan.

    A row does not change images that are inactive in it. If all are inactive, the row costs nothing. `noise` is one key
    per image, [b], or the noise itself: one unit normal x for each row of the whole run. At the start of every step,
    `constrain(x, row)` replaces x; the row's sigma is then that of x before any churn. `made` replaces the noise of
    some images.
    """
    shape = state.x.shape[1:]

    def draw(row: Rows) -> Noisy:
        drawn = draw_with_keys(row)
        return drawn if made is None else made.instead_of(drawn, row.index)

    def draw_with_keys(row: Rows) -> Noisy:
        if not jnp.issubdtype(noise.dtype, jax.dtypes.prng_key):
            return noise[row.index, jnp.arange(state.x.shape[0])]
        independent = jax.lax.cond(
            jnp.all(row.brownian), lambda: jnp.zeros_like(state.x),
            lambda: draw_noise(noise, SAMPLER, jnp.asarray(row.index), shape),
        )  # fmt: skip
        path = jax.lax.cond(
            jnp.any(row.brownian), lambda: brownian_noise(noise, row.interval, shape), lambda: independent
        )  # fmt: skip
        return choose_images(row.brownian, path, independent)

    def step(state: State, row: Rows) -> State:
        start = state
        if constrain is not None:
            begins, before = row.starts_step & row.active, row._replace(sigma=jnp.asarray(first_sigma(row)))
            x = jax.lax.cond(
                jnp.any(begins), lambda x: choose_images(begins, constrain(x, before), x), lambda x: x, state.x
            )  # fmt: skip
            start = dataclasses.replace(state, x=x)
        return choose_images(row.active, rule.advance(denoise, start, row, draw), state)

    def body(state: State, row: Rows) -> tuple[State, None]:
        return jax.lax.cond(jnp.any(row.active), step, lambda state, row: state, state, row), None

    return jax.lax.scan(body, state, rows)[0]


def choose_images(chosen: Numbers, these: Tree, others: Tree) -> Tree:
    """Returns the arrays of `these` for the chosen images and those of `others` for the rest."""
    return jax.tree.map(lambda a, b: jnp.where(per_image(chosen, a), a, b), these, others)
