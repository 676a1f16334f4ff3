"""FreeU: amplifies features and damps low frequencies of the skips in the UNet's first up blocks, without training.

Source: Si et al. 2023 (arXiv 2309.11497), section 3.2; ChenyangSi/FreeU for the two versions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float

from sdjax.adapters.patch import Context, Interceptor, path_of

Map = Float[Array, "b h w c"]


@struct.dataclass
class FreeUNumbers:
    """FreeU's four numbers for each image, each [b].

    `b1` and `b2` multiply features, `s1` and `s2` multiply low frequencies of the skips; 1 changes nothing. The
    original's values for Stable Diffusion 1.5 are b1 1.5, b2 1.6, s1 0.9, s2 0.2; for 2.1 b1 is 1.4.
    """

    b1: Array
    b2: Array
    s1: Array
    s2: Array


@dataclass(frozen=True)
class FreeU:
    """Scales the inputs of each residual block in some up blocks: half of the features, and the skip.

    `blocks` "diffusers": b1 and s1 for up block 0 (the coarsest), b2 and s2 for up block 1. "comfyui" (and the
    original): b1 and s1 where the features have four times the channels of the first convolution, b2 and s2 where they
    have twice as many. For Stable Diffusion this is up to the first join of up block 2, and the three after it. In
    version 1 features are multiplied by b. In version 2 the factor is 1 + (b - 1) m, where m is the mean over channels,
    scaled to 0 ... 1 over the image.

    Its per-image arrays are FreeUNumbers. It has no shared arrays.
    """

    version: Literal[1, 2] = 1
    blocks: Literal["diffusers", "comfyui"] = "diffusers"

    def intercept(self, shared: None, own: FreeUNumbers) -> Interceptor:
        """Returns the interceptor of `up_blocks_N/joins_M`, where features and skips come together."""
        first, second = (own.b1, own.s1), (own.b2, own.s2)
        width: list[int] = []  # channels of the first convolution

        def intercept(
            method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: Context
        ) -> Any:
            block, _, layer = path_of(context).partition("/")
            if block == "conv_in":
                out = method(*args, **kwargs)
                width.append(out.shape[-1])
                return out
            if not layer.startswith("joins_"):
                return method(*args, **kwargs)
            x, skip = args
            chosen = {"up_blocks_0": first, "up_blocks_1": second}.get(block)
            if self.blocks == "comfyui":
                chosen = {4 * width[-1]: first, 2 * width[-1]: second}.get(x.shape[-1])
            if chosen is None:
                return method(*args, **kwargs)
            b, s = chosen
            return method(strengthened(x, b, self.version), damped(skip, s), **kwargs)

        return intercept


def strengthened(x: Map, b: Float[Array, "b"], version: int) -> Map:
    """Returns the features with the first half of their channels multiplied, in x's dtype."""
    factor = b.reshape(-1, 1, 1, 1)
    if version == 2:
        mean = x.astype(jnp.float32).mean(-1, keepdims=True)
        low, high = mean.min((1, 2), keepdims=True), mean.max((1, 2), keepdims=True)
        spread = high - low
        factor = 1 + (factor - 1) * (mean - low) / jnp.where(spread > 0, spread, 1)
    half = x.shape[-1] // 2
    return jnp.concatenate([(x[..., :half] * factor).astype(x.dtype), x[..., half:]], axis=-1)


def damped(x: Map, s: Float[Array, "b"]) -> Map:
    """Returns the map with its lowest frequencies multiplied by s, in x's dtype.

    The lowest frequencies are the 2 x 2 box in the middle of the shifted spectrum: 0 and -1 along each axis. This
    filter is not symmetric, so the result is its real part, as in the original.
    """
    waves = low_waves(*x.shape[1:3])  # [n, h, w]
    wide = x.astype(jnp.float32)
    parts = jnp.einsum("bhwc,nhw->bnc", wide, waves) / (x.shape[1] * x.shape[2])
    low = jnp.einsum("bnc,nhw->bhwc", parts, waves)
    return (wide + (s.reshape(-1, 1, 1, 1) - 1) * low).astype(x.dtype)


def low_waves(height: int, width: int) -> np.ndarray:
    """Returns cosine and sine, float32 [n, h, w], of each frequency that the filter scales."""
    y, x = np.arange(height)[:, None] / height, np.arange(width) / width
    frequencies = {(k % height, m % width) for k in (0, -1) for m in (0, -1)}  # a side of one pixel has only one
    angles = np.array([2 * np.pi * (k * y + m * x) for k, m in sorted(frequencies)])
    return np.concatenate([np.cos(angles), np.sin(angles)]).astype(np.float32)
