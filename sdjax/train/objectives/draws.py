"""Random draws for each example of a batch, from the example's own key. So they do not depend on the devices."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from sdjax.typing import Key, Keys

# The kinds of draws: the number that is folded into an example's key
POSTERIOR, NOISE, OFFSET, PERTURBATION, TIMESTEP, CAPTION, LABEL, LEVEL, LEVEL_NOISE, HOLES, HOLES_POSTERIOR = range(11)
OFFSET_STRENGTH, PERTURBATION_STRENGTH, MULTIRES, SCALE, IMAGE_PROMPT = range(11, 16)


def keys_of(key: Key, step: jax.Array, rows: jax.Array) -> Keys:
    """Returns the keys [b] of the examples in these rows of step number `step`'s batch."""
    now = jax.random.fold_in(key, step)
    return jax.vmap(lambda row: jax.random.fold_in(now, row))(rows)


def normal(keys: Keys, stream: int, shape: Sequence[int]) -> jax.Array:
    """Returns unit normal numbers, float32 [b, *shape]."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, stream), tuple(shape)))(keys)


def uniform(keys: Keys, stream: int, shape: Sequence[int] = ()) -> jax.Array:
    """Returns numbers from [0, 1), float32 [b, *shape]."""
    return jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, stream), tuple(shape)))(keys)


def integers(keys: Keys, stream: int, low: int, high: int) -> jax.Array:
    """Returns whole numbers from low to high - 1, int32 [b]."""
    return jax.vmap(lambda key: jax.random.randint(jax.random.fold_in(key, stream), (), low, high))(keys)


def replaced(keys: Keys, stream: int, share: float, values: jax.Array, by: jax.typing.ArrayLike) -> jax.Array:
    """Returns values [b, ...] with about this share of examples replaced by `by`. A share of 0 draws nothing."""
    if share == 0:
        return values
    chosen = uniform(keys, stream) < share
    return jnp.where(chosen.reshape(-1, *(1,) * (values.ndim - 1)), by, values)
