"""Rows: a sampling run as a table of numbers, one row per call of the network.

Samplers work with x = x0 + sigma noise. For this x, every sampler with known steps is linear: the next x is a weighted
sum of the x where the step started, the remembered results of the last network calls, and fresh noise. A sampler
computes these weights on the host, in float64. (In numerical analysis these are general linear methods.)

`Sampler.steps` returns the rows of one image. `batch` puts the rows of several images side by side, so that each image
of a batch has its own sampler, number of steps and coefficients. The compiled scan (rule.py) takes only the rows of a
batch. Their numbers are its arguments, so another mixture of the same size needs no new compilation.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sdjax.schedule import PREDICTIONS

if TYPE_CHECKING:
    from sdjax.samplers.adaptive import Control
    from sdjax.samplers.dpm_adaptive import PIDControl

# Remembered earlier calls of most rules: Adams-Bashforth 4 after PLMS's extra call needs 4, SA-Solver with two calls a
# step needs 5
MEMORY = 5

Numbers: TypeAlias = np.ndarray | Array  # of a table on the host, or of a compiled program


class Coef(NamedTuple):
    """The weights of one row; see `sdjax.samplers.rule.Linear.update`."""

    churn: Numbers  # []: weight of fresh unit noise that is added to x before the call
    remember: Numbers  # [3]: weights of x, x0 and the unconditional x0 in the remembered result of this call
    own: Numbers  # [3]: weights of x, x0 and the unconditional x0 of this call in the next x, beside `calls`
    correct: Numbers  # [1 + memory]: weights of the remembered calls, newest first, that correct the step's start
    base: Numbers  # []: weight of the step's start in the next x
    calls: Numbers  # [1 + memory]: weights of the remembered calls, newest first, in the next x
    noise: Numbers  # []: weight of fresh unit noise in the next x


class Rows(NamedTuple):
    """The rows of a sampling run. All are float32 except the last seven.

    Leaves have the axes [n, ...] for one image and [n, b, ...] for a batch; n is the number of network calls.
    """

    timestep: Numbers  # the network's timestep, fractional
    sigma: Numbers  # the noise in x when the network is called
    sigma_next: Numbers  # the noise in x after this row
    coef: "Coef | Control | PIDControl"  # the weights for the sampler's rule
    interval: Numbers  # [2]: the sigmas between which the row's noise lies; both 0 if the row draws none
    brownian: Numbers  # whether this noise is an increment of the image's Brownian path (noise.py)
    starts_step: Numbers  # false for a step's second and later calls
    active: Numbers  # false for the padding at the end
    step: Numbers  # number of the step that the row belongs to
    num_steps: Numbers  # number of steps of the image's whole run
    index: Numbers  # type: ignore[assignment] # number of the row in the image's whole run; hides tuple's method
    stage: Numbers  # which of the image's contexts is used, if its prompt changes while sampling; else 0


def row(
    timestep: float,
    sigma: float,
    sigma_next: float,
    *,
    calls: Sequence[float] | np.ndarray,
    base: float = 1.0,
    noise: float = 0.0,
    remember: str | Sequence[float] = "x0",
    own: Sequence[float] = (0.0, 0.0, 0.0),
    correct: Sequence[float] | np.ndarray = (),
    churn: float = 0.0,
    interval: tuple[float, float] | None = None,
    brownian: bool = False,
    starts_step: bool = True,
    memory: int = MEMORY,
) -> Rows:
    """Returns one row, float64: next x = base * start of the step + sum of calls[i] * i-th last call + noise * z.

    `remember` chooses the result of a call for this sum: "x0", "epsilon" or "v" (for any network), or three weights of
    x, x0 and the unconditional x0. `own` are three such weights of this call's values, added to the next x and not
    remembered. `correct` are weights of another sum of calls, which is added to the step's start.

    `churn` z is added to x before the call; a row has one z, so it uses `churn` or `noise`. `interval` are the sigmas
    between which z lies; None means sigma and sigma_next. `brownian` says that z is an increment of the image's
    Brownian path.

    `memory` is how many earlier calls the sampler's rule remembers (`sdjax.samplers.rule.Linear`).
    """
    exact = functools.partial(np.asarray, dtype=np.float64)
    if isinstance(remember, str):
        of_x, of_out = map(float, PREDICTIONS[remember].x0(sigma))  # x0 = of_x x + of_out out, solved for out
        remember = (-of_x / of_out, 1 / of_out, 0.0)
    if noise == 0 and churn == 0:
        interval, brownian = (0.0, 0.0), False
    elif interval is None:
        interval = (sigma, sigma_next)
    weights = [np.pad(exact(w), (0, 1 + memory - len(w))) for w in (correct, calls)]
    coef = Coef(exact(churn), exact(remember), exact(own), weights[0], exact(base), weights[1], exact(noise))
    return Rows(
        exact(timestep), exact(sigma), exact(sigma_next), coef, exact(interval), np.asarray(brownian),
        starts_step=np.asarray(starts_step), active=np.asarray(True), step=np.asarray(0), num_steps=np.asarray(1),
        index=np.asarray(0), stage=np.asarray(0),
    )  # fmt: skip


def renoised(last: Rows, sigma_next: float, weight: float, interval: tuple[float, float]) -> Rows:
    """Returns a row that also adds noise of the given weight, up to sigma_next."""
    assert isinstance(last.coef, Coef)
    if weight == 0:
        return last._replace(sigma_next=np.asarray(sigma_next))
    noise, ends = np.asarray(weight, np.float64), np.asarray(interval, np.float64)
    return last._replace(coef=last.coef._replace(noise=noise), sigma_next=np.asarray(sigma_next), interval=ends)


def stack(rows: Sequence[Rows]) -> Rows:
    """Returns the rows of one image as one Rows, numbered, in float32."""
    whole = jax.tree.map(lambda *leaves: np.stack(leaves).astype(np.float32), *rows)
    index = np.arange(len(rows), dtype=np.int32)
    flags = {"brownian": whole.brownian > 0, "starts_step": whole.starts_step > 0, "active": index >= 0}
    step = np.maximum(np.cumsum(flags["starts_step"], dtype=np.int32) - 1, 0)
    num_steps = np.full_like(step, step[-1] + 1)
    stage = whole.stage.astype(np.int32)
    return whole._replace(step=step, num_steps=num_steps, index=index, stage=stage, **flags)


def whole_run(timestep: float, sigma: float, sigma_next: float, control: "Control | PIDControl") -> Rows:
    """Returns the one row of a run whose rule contains a loop. `control` are its numbers, leaves [1, ...]."""
    timesteps, sigmas, ends = (np.array([value], np.float32) for value in (timestep, sigma, sigma_next))
    return Rows(
        timesteps, sigmas, ends, control, interval=np.zeros((1, 2), np.float32), brownian=np.zeros(1, bool),
        starts_step=np.ones(1, bool), active=np.ones(1, bool), step=np.zeros(1, np.int32),
        num_steps=np.ones(1, np.int32), index=np.zeros(1, np.int32), stage=np.zeros(1, np.int32),
    )  # fmt: skip


def first_sigma(row: Rows) -> Numbers:
    """Returns the noise in x before a row: its sigma, or a lower one if the row adds noise before the call (churn)."""
    if not isinstance(row.coef, Coef):
        return row.sigma
    math = np if isinstance(row.sigma, np.ndarray) else jnp
    return math.where(row.coef.churn != 0, row.interval[..., 0], row.sigma)


def draws(rows: Rows, *, idle: bool) -> np.ndarray:
    """Returns which rows of one image take a draw from another tool's stream of noise, bool [n], in the tool's order.

    A tool also draws noise that it then multiplies by 0. With `idle`, every step of a sampler that may churn draws, as
    in k-diffusion. Otherwise only the steps that do churn draw, as in ComfyUI.
    """
    start, end = np.asarray(rows.interval).T
    return (start + end > 0) & ((start != end) | idle)


def batch(rows: Sequence[Rows]) -> Rows:
    """Returns the rows of several images side by side: leaves [n, b, ...] with the largest n.

    Shorter tables are padded with inactive rows. Raises ValueError if the rows are for different rules: images of the
    adaptive solver cannot share a batch with others.
    """
    kinds = {tuple((leaf.shape[1:], leaf.dtype) for leaf in jax.tree.leaves(one)) for one in rows}
    if len(kinds) != 1:
        raise ValueError("the images of a batch need rows for one rule; these are for different ones, or no image")
    longest = max(len(one.index) for one in rows)
    return jax.tree.map(lambda *leaves: np.stack(leaves, axis=1), *(_filled(one, longest) for one in rows))


def repeat(rows: Rows, images: int) -> Rows:
    """Returns rows for a batch of so many images, which all use the given rows."""
    return jax.tree.map(lambda a: jnp.repeat(a[:, None], images, axis=1) if isinstance(a, jax.Array)
                        else np.repeat(a[:, None], images, axis=1), rows)  # fmt: skip


def chunks(rows: Rows, size: int) -> Iterator[Rows]:
    """Yields the rows, `size` at a time. The last chunk is padded with inactive rows."""
    for start in range(0, len(rows.index), size):
        yield _filled(jax.tree.map(lambda a, start=start: a[start : start + size], rows), size)


def _filled(rows: Rows, size: int) -> Rows:
    """Returns the rows padded to `size` with inactive copies of the last one."""
    missing = size - len(rows.index)
    if not missing:
        return rows
    filled = jax.tree.map(lambda a: np.concatenate([a, np.repeat(a[-1:], missing, axis=0)]), rows)
    filled.active[-missing:] = False
    return filled


def per_image(values: Numbers | float, x: Array) -> Array:
    """Returns numbers [b] as [b, 1, ...], to be multiplied with x [b, ...]. A single number is returned unchanged."""
    shaped: Any = values
    if isinstance(values, np.ndarray | np.generic):  # outside of compiled programs each call of jnp is a program
        shaped = np.asarray(values, jax.dtypes.canonicalize_dtype(values.dtype))
    return shaped.reshape(-1, *(1,) * (x.ndim - 1)) if np.ndim(shaped) else shaped
