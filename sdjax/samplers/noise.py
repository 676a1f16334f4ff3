"""Random numbers of images: one key per image, one stream per purpose.

The numbers for one purpose never depend on how many were drawn for another.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sdjax.typing import Key, Keys

# The streams. In the second pass of a task, SECOND is folded into the key before any other stream
START, SAMPLER, POSTERIOR, MASK, LEVEL, SECOND, EMBEDDING, PRIOR = range(8)


def draw_noise(
    keys: Keys,
    stream: int,
    index: Int[Array | np.ndarray, ""] | Int[Array | np.ndarray, "b"] | int,
    shape: Sequence[int],
) -> Float[Array, "b ..."]:
    """Returns unit normal noise, float32 [b, *shape]. Entry i depends only on keys[i], `stream` and `index`.

    `index` is one number for the whole batch, or one for each image. Entry i does not depend on the other keys, on
    their number or on the devices: it is the same bit for bit.
    """

    def one(key: Key, index: Int[Array | np.ndarray, ""] | int) -> Float[Array, "..."]:
        return jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, stream), index), tuple(shape), jnp.float32)

    return jax.vmap(one, (0, 0 if jnp.ndim(index) else None))(keys, index)
