"""What a training run carries from step to step, and the moving average in it."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from sdjax.typing import Key, Params


@flax.struct.dataclass
class TrainState:
    """Everything that one step changes, and no functions: saved and restored whole, so that a run resumes exactly.

    `step` counts the steps taken, `ema_params` is the moving average of `params`, and `key` stays what it was at the
    start: step n draws from fold_in(key, n).
    """

    step: jax.Array
    params: Params
    ema_params: Params
    opt_state: Any
    key: Key

    @classmethod
    def create(cls, params: Params, optimizer: optax.GradientTransformation, seed: int) -> "TrainState":
        """Returns the state before the first step."""
        copy = jax.tree.map(jnp.array, params)  # donating a state must not give one buffer away twice
        return cls(jnp.zeros([], jnp.int32), params, copy, optimizer.init(params), jax.random.key(seed))


def ema_decay(step: jax.Array, decay: float) -> jax.Array:
    """Returns min(decay, (1 + n) / (10 + n)) at the n-th update, n from 1: a young average forgets its start.

    Source: ldm/modules/ema.py:LitEma, which counts n before it uses it.
    """
    n = step.astype(jnp.float32)
    return jnp.minimum(decay, (1 + n) / (10 + n))


def update_ema(average: Params, params: Params, decay: jax.Array) -> Params:
    """Returns average - (1 - decay) (average - params)."""
    return jax.tree.map(lambda a, p: a - (1 - decay) * (a - p), average, params)
