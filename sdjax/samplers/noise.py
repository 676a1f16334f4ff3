"""Random numbers of images: one key an image, one stream a purpose.

What is drawn for one purpose never depends on how much another one drew.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sdjax.typing import Key, Keys

# The streams. SECOND is folded in before all others for the second pass of a task
START, SAMPLER, POSTERIOR, MASK, LEVEL, SECOND, EMBEDDING, PRIOR = range(8)


def draw_noise(
    keys: Keys,
    stream: int,
    index: Int[Array | np.ndarray, ""] | Int[Array | np.ndarray, "b"] | int,
    shape: Sequence[int],
) -> Float[Array, "b ..."]:
    """Returns unit normal noise, float32 [b, *shape]: entry i depends on keys[i], stream and index alone.

    `index` is a number for the whole batch or one for each image. Entry i is the same bit for bit whatever the other
    keys, their number, and the devices that it is drawn on.
    """

    def one(key: Key, index: Int[Array | np.ndarray, ""] | int) -> Float[Array, "..."]:
        return jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, stream), index), tuple(shape), jnp.float32)

    return jax.vmap(one, (0, 0 if jnp.ndim(index) else None))(keys, index)
