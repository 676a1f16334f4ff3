"""Seamless tiling: convolutions wrap around, so that the left edge of a picture continues at the right edge.

Source: the tiling option of AUTOMATIC1111's web UI, which sets the padding mode of every convolution to "circular".
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from sdjax.adapters.patch import Context, Interceptor
from sdjax.checks.arguments import shown
from sdjax.nn.layers.conv import Conv

AXES = {"x": (2,), "y": (1,), "xy": (1, 2)}  # the axes of a map [b, h, w, c] that wrap around


@dataclass(frozen=True)
class Seamless:
    """Makes every convolution wrap around along `axes`: "x", "y" or "xy".

    Only padding of the same width on both sides wraps. The encoder pads before a stride on one side; these zeros stay,
    as in other tools. It must be the last patch of a network, so that the others get the wrapped maps too. It has no
    arrays. Raises ValueError for other axes.
    """

    axes: str

    def __post_init__(self) -> None:
        check_axes(self.axes)

    def intercept(self, shared: None = None, own: None = None) -> Interceptor:
        """Returns the interceptor of convolutions."""

        def intercept(
            method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: Context
        ) -> Any:
            if not isinstance(context.module, Conv):
                return method(*args, **kwargs)
            return wrapped(method, args[0], context.module, self.axes)

        return intercept


def check_axes(axes: str) -> str:
    """Returns the axes. Raises ValueError unless they are "x", "y" or "xy"."""
    if not isinstance(axes, str) or axes not in AXES:
        raise ValueError(f"seamless is one of {', '.join(AXES)}; got {shown(axes)}")
    return axes


def wrapped(
    method: Callable[..., Array], x: Float[Array, "b h w c"], conv: Conv, axes: str
) -> Float[Array, "b h2 w2 d"]:
    """Returns the convolution of x, computed by `method`, that wraps around along `axes`.

    The map is continued at both ends before the usual convolution, and the additional outputs are cut off. So every
    method of convolution can be used, and so can patches of the convolution.
    """
    widths, cuts = [(0, 0)] * 4, [slice(None)] * 4
    for axis in AXES[axes]:
        (low, high), stride = conv.padding[axis - 1], conv.strides[axis - 1]
        if low != high or low == 0:
            continue
        length = (x.shape[axis] + 2 * low - conv.kernel_size[axis - 1]) // stride + 1
        widths[axis] = (low * stride, low * stride)
        cuts[axis] = slice(low, low + length)
    if not any(map(any, widths)):
        return method(x)
    return method(jnp.pad(x, widths, mode="wrap"))[tuple(cuts)]
