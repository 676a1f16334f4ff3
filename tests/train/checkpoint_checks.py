"""A small training state, and what tests of checkpoints do with it."""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from sdjax.train.checkpoints.checkpoint import Checkpoints


@flax.struct.dataclass
class State:
    """A small training state: two types of numbers, an optimiser with named tuples and empty parts, a typed key."""

    step: jax.Array
    params: dict
    ema_params: dict
    opt_state: object
    key: jax.Array


def state_at(step, size=64):
    rng = np.random.default_rng(step)
    params = {
        "in": {"kernel": jnp.asarray(rng.normal(size=(8, size)), jnp.float32), "bias": jnp.zeros(size)},
        "out": jnp.asarray(rng.normal(size=(size, 3)), jnp.bfloat16),
        "none": {},
    }
    average = jax.tree.map(lambda leaf: leaf / 2, params)
    opt_state = optax.chain(optax.clip(1.0), optax.adam(0.1)).init(params)
    return State(jnp.int32(step), params, average, opt_state, jax.random.key(step))


def data(leaf):
    return np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(data(x), data(y))


def fill(folder, *steps, **options):
    """Saves some steps and returns the lines that will be said about them."""
    lines = []
    checkpoints = Checkpoints(folder, **{"keep": 9, "say": lines.append, **options})
    for step in steps:
        checkpoints.save(state_at(step))
    checkpoints.wait()
    return checkpoints, lines
