"""Rows: a sampling run as a table of numbers, one row a call of the network.

Samplers live in x = x0 + sigma noise. There every sampler that does not choose its steps while it runs is linear: the
next x is a weighted sum of where the step started, what the last calls of the network left behind, and fresh noise. A
sampler is a function that writes these weights down on the host, in float64. (Numerical analysts call such methods
general linear methods.)

`Sampler.steps` returns the rows of one image. `batch` puts those of several images side by side, so that each image of
a batch has its own sampler, number of steps and coefficients. The compiled scan (rule.py) takes only the latter, and
their numbers are its arguments: another mixture of the same size compiles nothing.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sdjax.schedule import PREDICTIONS

if TYPE_CHECKING:
    from sdjax.samplers.adaptive import Control

MEMORY = 4  # calls of the network remembered besides the present one: Adams-Bashforth 4 after PLMS's extra call

Numbers: TypeAlias = np.ndarray | Array  # of a table on the host, or of a compiled program


class Coef(NamedTuple):
    """The weights of one row; see `sdjax.samplers.rule.Linear.update`."""

    remember: Numbers  # [3]: of x, x0 and the unconditional x0 in what is remembered of this call
    correct: Numbers  # [1 + MEMORY]: of the remembered calls, this one first, in a correction of the step's start
    base: Numbers  # []: of the step's start in the next x
    calls: Numbers  # [1 + MEMORY]: of the remembered calls, this one first, in the next x
    noise: Numbers  # []: of fresh unit noise in the next x


class Rows(NamedTuple):
    """The rows of a sampling run: all float32 but the last three.

    Leaves have the axes [n, ...] for one image and [n, b, ...] for a batch; n counts calls of the network.
    """

    timestep: Numbers  # the network's timestep, fractional
    sigma: Numbers  # the noise in x when the network is called
    sigma_next: Numbers  # the noise in x after this row
    coef: "Coef | Control"  # what the sampler's rule reads
    starts_step: Numbers  # false for a step's second and later calls
    active: Numbers  # false for the padding at the end
    index: Numbers  # type: ignore[assignment] # number of the row in the image's whole run; hides tuple's method


def row(
    timestep: float,
    sigma: float,
    sigma_next: float,
    *,
    calls: Sequence[float] | np.ndarray,
    base: float = 1.0,
    noise: float = 0.0,
    remember: str | Sequence[float] = "x0",
    correct: Sequence[float] | np.ndarray = (),
    starts_step: bool = True,
) -> Rows:
    """Returns one row, float64: next x = base * start of the step + sum of calls[i] * i-th last call + noise * z.

    `remember` says what the sum takes of a call: "x0", "epsilon" or "v", whatever the network predicts, or the weights
    of x, x0 and the unconditional x0. `correct` adds such a sum to where the step starts.
    """
    exact = functools.partial(np.asarray, dtype=np.float64)
    if isinstance(remember, str):
        of_x, of_out = map(float, PREDICTIONS[remember].x0(sigma))  # x0 = of_x x + of_out out, solved for out
        remember = (-of_x / of_out, 1 / of_out, 0.0)
    weights = [np.pad(exact(w), (0, 1 + MEMORY - len(w))) for w in (correct, calls)]
    coef = Coef(exact(remember), weights[0], exact(base), weights[1], exact(noise))
    return Rows(
        exact(timestep), exact(sigma), exact(sigma_next), coef,
        starts_step=np.asarray(starts_step), active=np.asarray(True), index=np.asarray(0),
    )  # fmt: skip


def stack(rows: Sequence[Rows]) -> Rows:
    """Returns the rows of one image as one Rows, numbered, in float32."""
    whole = jax.tree.map(lambda *leaves: np.stack(leaves).astype(np.float32), *rows)
    index = np.arange(len(rows), dtype=np.int32)
    return whole._replace(starts_step=whole.starts_step > 0, active=index >= 0, index=index)


def batch(rows: Sequence[Rows]) -> Rows:
    """Returns the rows of several images side by side: leaves [n, b, ...], where n is the longest image's.

    The shorter ones are filled up with rows that are not active. Raises ValueError where the rows are for different
    rules: the adaptive solver's images share no batch with others.
    """
    kinds = {tuple((leaf.shape[1:], leaf.dtype) for leaf in jax.tree.leaves(one)) for one in rows}
    if len(kinds) != 1:
        raise ValueError("the images of a batch need rows for one rule; these are for different ones, or no image")
    longest = max(len(one.index) for one in rows)
    return jax.tree.map(lambda *leaves: np.stack(leaves, axis=1), *(_filled(one, longest) for one in rows))


def repeat(rows: Rows, images: int) -> Rows:
    """Returns the rows of a batch in which every image takes the rows of this one."""
    return jax.tree.map(lambda a: jnp.repeat(a[:, None], images, axis=1) if isinstance(a, jax.Array)
                        else np.repeat(a[:, None], images, axis=1), rows)  # fmt: skip


def chunks(rows: Rows, size: int) -> Iterator[Rows]:
    """Yields the rows, `size` at a time; the last chunk is filled up with rows that are not active."""
    for start in range(0, len(rows.index), size):
        yield _filled(jax.tree.map(lambda a, start=start: a[start : start + size], rows), size)


def _filled(rows: Rows, size: int) -> Rows:
    """Returns the rows and as many copies of the last one, not active, as make `size` in all."""
    missing = size - len(rows.index)
    if not missing:
        return rows
    filled = jax.tree.map(lambda a: np.concatenate([a, np.repeat(a[-1:], missing, axis=0)]), rows)
    filled.active[-missing:] = False
    return filled


def per_image(values: Numbers | float, x: Array) -> Array:
    """Returns numbers [b] as [b, 1, ...] to multiply x [b, ...], and a single number as it is."""
    values = jnp.asarray(values)
    return values.reshape(-1, *(1,) * (x.ndim - 1)) if values.ndim else values
