"""Networks of convolutions alone over maps in bands of rows: the same numbers as for the whole map, in less memory.

A band has a margin above and below, as wide as the network sees, and only the rows between are kept. At the map's ends
a band ends where the map ends, because there the convolutions pad with zeros. TAESD is such a network: it has no norms,
so it needs no statistics of the whole map, as `sdjax.pipeline.tiling` does for the usual autoencoder.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from sdjax.adapters.patch import patched
from sdjax.adapters.seamless import Seamless
from sdjax.config import VAEConfig
from sdjax.nn.taesd import TinyAutoencoder, blocks_at
from sdjax.typing import Params

BAND = 2**20  # pixels of a picture in one band without its margins
LEAST = 16  # rows of the latent in a band

Map = Float[Array, "b h w c"]
NewMap = Float[Array, "b h2 w2 c2"]


def margin_of(config: VAEConfig) -> int:
    """Returns how many rows of a latent TAESD sees above and below those that belong to a part of the picture.

    A convolution sees one row of its level. A level has three convolutions a block and one that changes the size, and
    there is one at each end. Rows of a level are 1/2**n of the latent's.
    """
    top = len(config.channels) - 1
    rows = sum((3 * blocks_at(config, level) + 1) / 2 ** (top - level) for level in range(top + 1))
    return int(rows + 1) + 1  # with the convolution of the latent, rounded up


def run(config: VAEConfig, dtype: DTypeLike, params: Params, x: Map, method: str, seamless: str = "") -> NewMap:
    """Returns what TAESD's method "encode" or "decode" makes of x, float32, in bands.

    Convolutions wrap around along the axes of `seamless`.
    """
    network, encodes = TinyAutoencoder(config, jnp.dtype(dtype)), method == "encode"
    margin, h = margin_of(config), x.shape[1] // (config.factor if encodes else 1)
    width = x.shape[2] * (1 if encodes else config.factor)
    core = max(BAND // (config.factor * width), LEAST)
    across = seamless.replace("y", "")

    def apply(part: Map) -> Any:
        with patched([Seamless(across)] if across else []):
            return network.apply({"params": params}, part, method=method)

    times = (config.factor, 1) if encodes else (1, config.factor)
    if "y" in seamless:  # the rows beyond an end are those at the other end
        wrapped = jnp.concatenate([x[:, -margin * times[0] :], x, x[:, : margin * times[0]]], axis=1)
        made = in_bands(apply, wrapped, core, margin, times)
        return made[:, margin * times[1] : (margin + h) * times[1]]
    return in_bands(apply, x, core, margin, times)


def in_bands(function: Callable[[Map], Any], x: Map, core: int, margin: int, times: tuple[int, int]) -> NewMap:
    """Returns `function` of a map, computed in bands of `core` rows with `margin` rows above and below.

    `times`: how many rows of x, and of the result, one of these rows is. All bands have one height, so that the
    function is compiled once.
    """
    (into, out), h = times, x.shape[1] // times[0]
    height = core + 2 * margin
    if height >= h:
        made: NewMap = function(x)
        return made
    shape = jax.eval_shape(function, x)

    def put(i: Array, made: NewMap) -> NewMap:
        own = jnp.minimum(i * core, h - core)  # the last band overlaps the one before
        start = jnp.clip(own - margin, 0, h - height)
        part = function(jax.lax.dynamic_slice_in_dim(x, start * into, height * into, axis=1))
        inner = jax.lax.dynamic_slice_in_dim(part, (own - start) * out, core * out, axis=1)
        return jax.lax.dynamic_update_slice_in_dim(made, inner, own * out, axis=1)

    return jax.lax.fori_loop(0, -(-h // core), put, jnp.zeros(shape.shape, shape.dtype))
