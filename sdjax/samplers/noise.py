"""Random numbers of images: one key per image, one stream per purpose.

The numbers for one purpose never depend on how many were drawn for another.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from sdjax.typing import Key, Keys

# The streams. In the second pass of a task, SECOND is folded into the key before any other stream
START, SAMPLER, POSTERIOR, MASK, LEVEL, SECOND, EMBEDDING, PRIOR, PATH, REFERENCE = range(10)

# The time of a Brownian path is -log sigma, from -SPAN / 2 to SPAN / 2: sigmas from 4.5e-5 to 2.2e4. It is halved so
# often: to 7.6e-5, a hundredth of the shortest step of 1000. In between the path is straight
SPAN, HALVINGS = 20.0, 18


@struct.dataclass
class MadeNoise:
    """Noise that the host made for rows: for image i, entry r modulo n of `noise` is for row r. `made` says for whom.

    Other images draw their noise with their keys.
    """

    noise: Float[Array | np.ndarray, "b n ..."]
    made: Bool[Array | np.ndarray, "b"]

    def instead_of(self, drawn: Float[Array, "b ..."], index: Int[Array | np.ndarray, "b"]) -> Float[Array, "b ..."]:
        """Returns unit noise of the rows with these numbers: the made one, or what was drawn with keys."""
        own = jnp.asarray(self.noise)[jnp.arange(len(drawn)), jnp.asarray(index) % self.noise.shape[1]]
        return jnp.where(jnp.reshape(self.made, (-1, *(1,) * (drawn.ndim - 1))), own, drawn)

    def chunk(self, start: int, size: int) -> "MadeNoise":
        """Returns the noise of `size` rows from row `start`, a multiple of `size`, on. What is missing is zeros."""
        part = np.asarray(self.noise)[:, start : start + size]
        missing = ((0, 0), (0, size - part.shape[1]), *((0, 0),) * (part.ndim - 2))
        return dataclasses.replace(self, noise=np.pad(part, missing))


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


def brownian_noise(
    keys: Keys, interval: Float[Array | np.ndarray, "b 2"], shape: Sequence[int]
) -> Float[Array, "b ..."]:
    """Returns increments of each image's Brownian path, divided by the root of their length: float32 [b, *shape].

    The time of the path is -log sigma; `interval` are the sigmas where an increment starts and ends. The path of an
    image depends only on its key. So increments over the parts of an interval sum up to that over the whole, however
    the steps are chosen: more steps refine the same picture. The sign is that of the direction. An empty interval gives
    zeros.

    The path is a virtual tree: its values at the ends and then at the middle of each half are drawn from keys that name
    the place, down to the time asked for. Nothing is stored.

    Source: Li et al. 2020 (arXiv 2001.01328), section 4, for the tree; Levy's construction of the Brownian bridge.
    """

    def value(key: Key, time: Float[Array, ""]) -> Float[Array, "..."]:
        def halve(
            place: tuple[Array, Array, Array, Array], width: Array
        ) -> tuple[tuple[Array, Array, Array, Array], None]:
            node, left, low, high = place
            fresh = jax.random.normal(jax.random.fold_in(key, node), tuple(shape), jnp.float32)
            middle = (low + high) / 2 + jnp.sqrt(width) / 2 * fresh
            right = time >= left + width / 2
            low, high = jnp.where(right, middle, low), jnp.where(right, high, middle)
            return (2 * node + right.astype(jnp.uint32), left + right * width / 2, low, high), None

        whole = SPAN**0.5 * jax.random.normal(jax.random.fold_in(key, 0), tuple(shape), jnp.float32)
        widths = np.float32(SPAN) / 2 ** np.arange(HALVINGS, dtype=np.float32)
        start = (jnp.uint32(1), jnp.float32(0), jnp.zeros_like(whole), whole)
        (_, left, low, high), _ = jax.lax.scan(halve, start, jnp.asarray(widths))
        return low + (time - left) * (2**HALVINGS / SPAN) * (high - low)

    def one(key: Key, ends: Float[Array, "2"]) -> Float[Array, "..."]:
        times = jnp.clip(SPAN / 2 - jnp.log(jnp.maximum(ends, 1e-30)), 0, SPAN)
        before, after = jax.vmap(value, (None, 0))(jax.random.fold_in(key, PATH), times)
        length = jnp.abs(times[1] - times[0])
        return jnp.where(length > 0, (after - before) / jnp.sqrt(jnp.where(length > 0, length, 1)), 0)

    return jax.vmap(one)(keys, jnp.asarray(interval, jnp.float32))
