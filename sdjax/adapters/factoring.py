"""Changes of kernels as low-rank factors: from a difference by SVD, and sums of factors exactly or to a smaller rank.

Everything is computed in float32, on the device that JAX uses.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sdjax.adapters.delta import AdapterError, LowRank


@dataclass(frozen=True)
class Truncation:
    """Which singular values to keep: as many as all given limits allow, and at least one.

    `rank` is the largest number of them. `energy` is a share in (0, 1]: as few as reach it, where the energy of a
    singular value s is s^2, so that the relative error of the change is sqrt(1 - energy). `ratio` is at least 1: only
    those larger than the largest divided by it.
    """

    rank: int | None = None
    energy: float | None = None
    ratio: float | None = None

    def __post_init__(self) -> None:
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"a rank is a whole number from 1 up; got {self.rank}")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise ValueError(f"a share of energy is above 0 and at most 1; got {self.energy}")
        if self.ratio is not None and not 1 <= self.ratio < float("inf"):
            raise ValueError(f"a ratio of singular values is a number from 1 up; got {self.ratio}")

    def count(self, values: np.ndarray, most: int) -> int:
        """Returns how many of the singular values, sorted from the largest, to keep. Without limits `most`."""
        limits = [len(values), most] + ([] if self.rank is None else [self.rank])
        if self.energy is not None:
            energy = np.cumsum(values.astype(np.float64) ** 2)
            limits.append(int(np.searchsorted(energy, self.energy * energy[-1])) + 1)
        if self.ratio is not None:
            limits.append(int(np.sum(values > values[0] / self.ratio)))
        return max(1, min(limits))


@dataclass(frozen=True)
class Factored:
    """A change as factors with scale 1, and the share of its energy that they keep."""

    change: LowRank
    kept: float

    @property
    def rank(self) -> int:
        return int(self.change.down.shape[-1])


def singular_values(difference: Array | np.ndarray) -> np.ndarray:
    """Returns the singular values of a kernel's change as a matrix [outputs, inputs and window], largest first."""
    return np.asarray(jnp.linalg.svd(_matrix(difference), compute_uv=False))


def factor(difference: Array | np.ndarray, keep: Truncation, clamp_quantile: float | None = None) -> Factored:
    """Returns the best low-rank approximation of a kernel's change, [c, d] or [h, w, c, d], by a full SVD.

    If `keep` has a rank, the rank is at most the smaller number of channels, as in kohya's tools. The singular values
    are in `up`. `clamp_quantile` limits the numbers of the factors as kohya's tools do; see `_clamped`.

    Raises AdapterError if the change is not finite.
    """
    u, s, v = _svd(_matrix(difference))
    return _truncated(u, s, v, difference.shape, keep, clamp_quantile)


def refactor(
    changes: Sequence[tuple[LowRank, float]], keep: Truncation, clamp_quantile: float | None = None
) -> Factored:
    """Returns the best low-rank approximation of a weighted sum of changes of one kernel.

    It takes the QR factors of both sides, and the SVD of a matrix that is only as large as the ranks' sum. So it is
    exact and needs no matrix of the kernel's size. Only clamping needs one, because signs matter there. If `keep` has
    only a rank, smaller ranks are padded with zeros, so that all layers get the same rank. The other arguments and
    errors are those of `factor`.
    """
    total = concatenate(changes)
    shape = (*total.down.shape[:-1], total.up.shape[-1])
    up, down = jnp.asarray(total.up, jnp.float32).T * jnp.float32(total.scale), _matrix(total.down)
    _check_finite(up)
    if clamp_quantile is None:
        left, r_left = jnp.linalg.qr(up)
        right, r_right = jnp.linalg.qr(down.T)
        u, s, v = _svd(_product(r_left, r_right.T))
        u, v = _product(left, u), _product(v, right.T)
    else:
        u, s, v = _svd(_product(up, down))
    factored = _truncated(u, s, v, shape, keep, clamp_quantile)
    if keep.rank is None or keep.energy is not None or keep.ratio is not None:
        return factored
    return Factored(padded(factored.change, min(keep.rank, *shape[-2:])), factored.kept)


def padded(change: LowRank, rank: int) -> LowRank:
    """Returns the same change with zeros in its factors up to a rank that is at least its own."""
    more = rank - change.up.shape[0]
    down = jnp.pad(jnp.asarray(change.down), [*[(0, 0)] * (change.down.ndim - 1), (0, more)])
    return LowRank(down, jnp.pad(jnp.asarray(change.up), [(0, more), (0, 0)]), change.scale)


def concatenate(changes: Sequence[tuple[LowRank, float]]) -> LowRank:
    """Returns the weighted sum of changes of one kernel, exactly: its rank is the sum of their ranks.

    Scales and weights go into `up`, unless they are the same for all changes: then the factors stay as they are.
    Raises AdapterError if the changes are of kernels of different shapes.
    """
    shapes = {(*change.down.shape[:-1], change.up.shape[-1]) for change, _ in changes}
    if len(shapes) > 1:
        raise AdapterError(f"the changes are of kernels of different shapes: {', '.join(map(str, sorted(shapes)))}")
    scales = [float(weight) * float(change.scale) for change, weight in changes]
    if len(set(scales)) == 1:
        return LowRank(
            jnp.concatenate([change.down for change, _ in changes], -1),
            jnp.concatenate([change.up for change, _ in changes]),
            scales[0],
        )
    downs = [jnp.asarray(change.down, jnp.float32) for change, _ in changes]
    ups = [jnp.asarray(change.up, jnp.float32) * scale for (change, _), scale in zip(changes, scales)]
    return LowRank(jnp.concatenate(downs, -1), jnp.concatenate(ups), 1.0)


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _svd(matrix: Array) -> tuple[Array, Array, Array]:
    """Returns the SVD, in the signs of PyTorch on CPUs if possible: MKL starts with a QR from this shape on."""
    rows, columns = matrix.shape
    if rows < 1.5 * columns:
        return tuple(jnp.linalg.svd(matrix, full_matrices=False))
    q, r = jnp.linalg.qr(matrix)
    u, s, v = jnp.linalg.svd(r, full_matrices=False)
    return _product(q, u), s, v


def _matrix(kernel: Array | np.ndarray) -> Array:
    """Returns a kernel [c, d] or [h, w, c, d] as the float32 matrix [d, c h w]. Raises AdapterError if not finite."""
    array = jnp.asarray(kernel, jnp.float32)
    order = (1, 0) if array.ndim == 2 else (3, 2, 0, 1)  # PyTorch's, so that signs of an SVD are those of other tools
    matrix = array.transpose(order).reshape(array.shape[-1], -1)
    _check_finite(matrix)
    return matrix


def _check_finite(array: Array) -> None:
    if not bool(jnp.isfinite(array).all()):
        raise AdapterError("it holds numbers that are not finite")


def _truncated(
    u: Array, s: Array, v: Array, shape: tuple[int, ...], keep: Truncation, clamp_quantile: float | None
) -> Factored:
    """Returns the change of a kernel of this shape, whose SVD as a matrix [d, c h w] is u s v."""
    values = np.asarray(s)
    most = len(values) if keep.rank is None else min(shape[-2:])
    rank = keep.count(values, most)
    energy = values.astype(np.float64) ** 2
    kept = float(energy[:rank].sum() / energy.sum()) if energy.sum() else 1.0
    up, down = u[:, :rank] * s[:rank], v[:rank]
    if clamp_quantile is not None:
        up, down = _clamped(up, down, clamp_quantile)
    *window, inputs, _ = shape
    factor = down.reshape(rank, inputs, *window)
    factor = factor.T if not window else factor.transpose(2, 3, 1, 0)
    return Factored(LowRank(factor, up.T, 1.0), kept)


def _clamped(up: Array, down: Array, quantile: float) -> tuple[Array, Array]:
    """Returns the factors with all numbers limited to [-q, q], where q is the quantile of their numbers with signs.

    It depends on the signs that the SVD chose, and even quantile 1 may change numbers: if the negative ones are larger.
    Source: sd-scripts, networks/extract_lora_from_models.py.
    """
    if not 0.5 < quantile <= 1:
        raise ValueError(f"a quantile to clamp at is above 0.5 and at most 1; got {quantile}")
    limit = np.quantile(np.concatenate([np.asarray(up).ravel(), np.asarray(down).ravel()]), quantile)
    return jnp.clip(up, -limit, limit), jnp.clip(down, -limit, limit)
