"""Two-dimensional convolution, channels last, by the fastest method for the platform."""

import functools
import math
from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from sdjax.nn.layers import rows
from sdjax.nn.layers.products import cpu_dtype, wide
from sdjax.nn.layers.winograd import winograd
from sdjax.nn.quantised.leaf import kernel_for

Padding = tuple[tuple[int, int], tuple[int, int]]
POINT: Padding = ((0, 0), (0, 0))  # of 1x1 convolutions and patches: none

SMALL_MAP = 8 * 8  # output positions up to which one float32 product is fastest on CPUs, four times that in halves ...
WIDE = 512  # ... where the input has at least this many channels
NARROW = 64  # channels in or out from which on Winograd's products are faster ...
LARGE_MAP = 2**19  # ... positions of a batch up to which they are, which hold four times the map at a time ...
WORTH = 2**27  # ... and multiplications for which they are worth the second that they take to compile


class Conv(nn.Module):
    """Convolution with kernel [h, w, in, out] and explicit padding."""

    features: int
    kernel_size: tuple[int, int] = (3, 3)
    strides: tuple[int, int] = (1, 1)
    padding: Padding = ((1, 1), (1, 1))
    use_bias: bool = True
    kernel_init: Callable = nn.initializers.lecun_normal()
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        kernel = kernel_for(self, x, self.kernel_init, (*self.kernel_size, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,)) if self.use_bias else None
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        bias = None if bias is None else bias.astype(self.dtype)
        return conv2d(x, kernel, bias, strides=self.strides, padding=self.padding)


def conv2d(
    x: Float[Array, "b h w c"], kernel: Float[Array, "i j c d"], bias: Float[Array, "d"] | None = None, *,
    strides: tuple[int, int] = (1, 1), padding: Padding = ((1, 1), (1, 1)),
) -> Float[Array, "b h2 w2 d"]:  # fmt: skip
    """Returns the convolution of x with kernel, plus bias, in x's dtype.

    It is XLA's convolution, except on CPUs, where two other methods were measured to be faster
    (benchmarks/convolution.py): one matrix product for 1x1 kernels and for small maps of many channels, and Winograd's
    products for other 3x3 kernels of stride 1.

    Inside `sdjax.nn.layers.rows.over_rows` every device computes some rows of the result.
    """
    mesh = rows.current()
    if mesh is not None:
        return _over_rows(mesh, x, kernel, bias, strides, padding)
    xla = functools.partial(convolution, strides=strides, padding=padding)
    method = method_on_cpu(x.shape, kernel.shape, strides, padding, x.dtype)
    if method == "xla":
        y = xla(x, kernel)
    else:
        own = winograd if method == "winograd" else functools.partial(columns, strides=strides, padding=padding)
        y = jax.lax.platform_dependent(x, kernel, cpu=own, default=xla)
    return y if bias is None else y + bias


def _over_rows(
    mesh: Mesh, x: Array, kernel: Array, bias: Array | None, strides: tuple[int, int], padding: Padding
) -> Array:
    """Returns the convolution of a map whose rows are spread over the devices of a mesh."""
    h, count, stride, above = x.shape[1], mesh.shape[rows.ROWS], strides[0], padding[0][0]
    below = kernel.shape[0] - stride - above  # rows that the last position of a part sees below it
    out = (h + sum(padding[0]) - kernel.shape[0]) // stride + 1
    # Only if part i of the result needs part i of x and some rows of its neighbours
    fits = out * stride == h and out % count == 0 and 0 <= below <= h // count >= above

    def part(x: Array, kernel: Array, *bias: Array) -> Array:
        sides = padding
        if fits:
            x, sides = rows.with_neighbours(x, above, below), ((0, 0), padding[1])
        return conv2d(x, kernel, *bias, strides=strides, padding=sides)

    own = P(rows.batch_axis(mesh, len(x)), *[rows.ROWS] * fits)
    args = (x, kernel) if bias is None else (x, kernel, bias)
    return rows.in_parts(part, mesh, (own, *[P()] * (len(args) - 1)), own)(*args)


def method_on_cpu(
    shape: tuple[int, ...], kernel: tuple[int, ...], strides: tuple[int, int], padding: Padding, dtype: jnp.dtype
) -> Literal["xla", "columns", "winograd"]:
    """Returns the method of convolution for a map of `shape`."""
    b, h, w, c = shape
    positions = -(-h // strides[0]) * -(-w // strides[1])
    usual = kernel[:2] == (3, 3) and strides == (1, 1) and padding == ((1, 1), (1, 1)) and min(kernel[2:]) >= NARROW
    many = positions > SMALL_MAP or c < WIDE
    if usual and many and b * positions <= LARGE_MAP and b * positions * math.prod(kernel) >= WORTH:
        return "winograd"
    limit = SMALL_MAP if dtype == jnp.float32 else 4 * SMALL_MAP
    return "columns" if kernel[:2] == (1, 1) or (positions <= limit and c >= WIDE) else "xla"


def convolution(x: Array, kernel: Array, *, strides: tuple[int, int], padding: Padding) -> Array:
    """Returns XLA's convolution."""
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def columns(x: Array, kernel: Array, *, strides: tuple[int, int], padding: Padding) -> Array:
    """Returns the convolution as the product of every position's neighbourhood, [b h2 w2, i j c], with the kernel.

    In float32 where the processor does not multiply x's dtype faster.
    """
    b, h, w, c = x.shape
    rows, cols, _, d = kernel.shape
    h2 = (h + sum(padding[0]) - rows) // strides[0] + 1
    w2 = (w + sum(padding[1]) - cols) // strides[1] + 1
    dtype = cpu_dtype(x.dtype)
    padded = jnp.pad(x.astype(dtype), ((0, 0), *padding, (0, 0)))
    stops = (strides[0] * (h2 - 1) + 1, strides[1] * (w2 - 1) + 1)
    shifted = [
        padded[:, i : i + stops[0] : strides[0], j : j + stops[1] : strides[1]]
        for i in range(rows)
        for j in range(cols)
    ]
    neighbourhoods = jnp.concatenate(shifted, axis=-1).reshape(b * h2 * w2, rows * cols * c)
    y = wide(neighbourhoods, kernel.astype(dtype).reshape(rows * cols * c, d))
    return y.reshape(b, h2, w2, d).astype(x.dtype)
