"""3 x 3 convolution with 16 products instead of 36: Winograd's F(2x2, 3x3).

A tile of 2 x 2 output positions depends on 4 x 4 input positions. Input tiles and kernel are transformed, so that the
convolution becomes 16 elementwise products. Over all tiles and channels, each of them is a matrix product [tiles, c] x
[c, d]. The results are transformed back to tiles of 2 x 2. All coefficients are 0, 1 or 1/2, and the rounding error is
that of the usual convolution. Source: Lavin and Gray 2015 (arXiv 1509.09308), section 4.1.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from sdjax.nn.layers.products import cpu_dtype, wide

LARGEST = 2**29  # bytes of transformed input that are held at a time; larger maps go band by band

Grid = Sequence[Sequence[Array]]


@jax.custom_vjp
def winograd(x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"]) -> Float[Array, "b h w d"]:
    """Returns the convolution of x, with one row and column of zeros around it, with the kernel, in x's dtype.

    Transforms and sums are float32. Factors are rounded to x's dtype if the processor multiplies that faster. Only
    reverse-mode gradients work; they use float32 products and store only x and the kernel.
    """
    return _convolve(x, kernel, cpu_dtype(x.dtype))


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return winograd(x, kernel), (x, kernel)


def _backward(kept: tuple[Array, Array], slope: Array) -> tuple[Array, Array]:
    x, kernel = kept
    dy = slope.astype(jnp.float32)
    dx = _convolve(dy, jnp.swapaxes(kernel[::-1, ::-1], 2, 3), jnp.float32)
    b, h, w, c = x.shape
    rows, count = _bands(b, h, w, c, jnp.float32)
    padded, dy = _padded(x, rows * count), _whole(dy, rows * count)

    def band(total: Array, i: Array) -> tuple[Array, None]:
        inputs = _inputs(_band(padded, i, 2 * rows, 2), jnp.float32)
        grid = _both(_spread, _split(_band(dy, i, 2 * rows, 0)))
        slopes = [part.reshape(-1, part.shape[-1]) for part in _flat(grid)]
        return total + jnp.stack([a.T @ b for a, b in zip(inputs, slopes, strict=True)]), None

    zero = jnp.zeros((16, *kernel.shape[2:]), jnp.float32)
    total = band(zero, jnp.int32(0))[0] if count == 1 else jax.lax.scan(band, zero, jnp.arange(count))[0]
    grid = _both(_unweighted, [[total[4 * i + j] for j in range(4)] for i in range(4)])
    dk = jnp.stack([jnp.stack(row) for row in grid])
    return dx.astype(x.dtype), dk.astype(kernel.dtype)


winograd.defvjp(_forward, _backward)


def _convolve(x: Array, kernel: Array, dtype: DTypeLike) -> Array:
    """Returns the convolution in x's dtype, by products of `dtype`."""
    b, h, w, c = x.shape
    weights = [
        part.astype(dtype)
        for part in _flat(_both(_weighted, [list(row) for row in _after(x, kernel).astype(jnp.float32)]))
    ]
    rows, count = _bands(b, h, w, c, dtype)
    padded = _padded(x, rows * count)

    d = kernel.shape[-1]

    def band(i: Array) -> Array:
        inputs = _inputs(_band(padded, i, 2 * rows, 2), dtype)
        sums = [wide(part, weight) for part, weight in zip(inputs, weights, strict=True)]
        grid = _both(_gathered, [sums[4 * j : 4 * j + 4] for j in range(4)])
        shape = (b, rows, -1, d)
        tiles = jnp.stack([jnp.stack([part.astype(x.dtype).reshape(shape) for part in row], 3) for row in grid], 2)
        return tiles.reshape(b, 2 * rows, -1, d)

    def fill(i: Array, y: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(y, band(i), 2 * rows * i, 1)

    if count == 1:
        return band(jnp.int32(0))[:, :h, :w]
    y = jnp.zeros((b, 2 * rows * count, w + w % 2, d), x.dtype)
    return jax.lax.fori_loop(0, count, fill, y)[:, :h, :w]


def _after(x: Array, kernel: Array) -> Array:
    """Returns the kernel, but makes XLA compute x first.

    Otherwise XLA transforms all kernels of a network first, and needs 16 / 9 of their size. With several devices this
    is left out: x may be spread over them, and waiting for it would need communication.
    """
    if jax.device_count() > 1:
        return kernel
    return jnp.where(x[0, 0, 0, 0] > jnp.inf, 0, kernel)  # never true, but XLA does not know this


def _bands(b: int, h: int, w: int, c: int, dtype: DTypeLike) -> tuple[int, int]:
    """Returns the number of tile rows in a band, and the number of bands."""
    tiles = -(-h // 2)
    most = max(1, LARGEST // (16 * jnp.dtype(dtype).itemsize * b * -(-w // 2) * c))
    count = -(-tiles // most)
    return -(-tiles // count), count


def _whole(x: Array, rows: int) -> Array:
    """Returns a map padded with zeros below and to the right, to whole tiles."""
    _, h, w, _ = x.shape
    return jnp.pad(x, ((0, 0), (0, 2 * rows - h), (0, w % 2), (0, 0)))


def _padded(x: Array, rows: int) -> Array:
    return jnp.pad(_whole(x, rows), ((0, 0), (1, 1), (1, 1), (0, 0)))


def _band(x: Array, i: Array, rows: int, more: int) -> Array:
    if x.shape[1] == rows + more:
        return x
    return jax.lax.dynamic_slice_in_dim(x, i * rows, rows + more, 1)


def _inputs(x: Array, dtype: DTypeLike) -> list[Array]:
    """Returns the 16 matrices [tiles, c] of a padded band [b, 2 rows + 2, w + 2, c], rounded to `dtype`.

    Rows are transformed first, and converted to float32 when read. So XLA makes loops that vector units can run.
    """
    h, w = x.shape[1] - 2, x.shape[2] - 2
    rows = _taken([x[:, i : i + h : 2].astype(jnp.float32) for i in range(4)])
    parts = [part for row in rows for part in _taken([row[:, :, j : j + w : 2] for j in range(4)])]
    return [part.astype(dtype).reshape(-1, x.shape[-1]) for part in parts]


def _split(x: Array) -> Grid:
    return [[x[:, i::2, j::2] for j in range(2)] for i in range(2)]


def _both(transform: Callable, grid: Grid) -> Grid:
    """Applies a transform to the columns of a grid, then to the rows of the result."""
    columns = [transform(column) for column in zip(*grid, strict=True)]
    return [transform(row) for row in zip(*columns, strict=True)]


def _flat(grid: Grid) -> list[Array]:
    return [part for row in grid for part in row]


def _weighted(g: Sequence[Array]) -> list[Array]:
    return [g[0], 0.5 * (g[0] + g[1] + g[2]), 0.5 * (g[0] - g[1] + g[2]), g[2]]


def _unweighted(u: Sequence[Array]) -> list[Array]:
    return [u[0] + 0.5 * (u[1] + u[2]), 0.5 * (u[1] - u[2]), 0.5 * (u[1] + u[2]) + u[3]]


def _taken(d: Sequence[Array]) -> list[Array]:
    return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]


def _gathered(m: Sequence[Array]) -> list[Array]:
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]


def _spread(y: Sequence[Array]) -> list[Array]:
    return [y[0], y[0] + y[1], y[0] - y[1], -y[1]]
