"""The training state, its moving average, and the guard that refuses bad steps."""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from sdjax.checks.effects import needs
from sdjax.nn.jax_settings import make_key
from sdjax.typing import Key, Params


@flax.struct.dataclass
class Refused:
    """The refused steps, which changed only the counts: `total` in all, the last `in_a_row` in a row, int32.

    `typical` is the usual norm of the gradients, float32: a moving average over the steps that were taken.
    """

    total: jax.Array
    in_a_row: jax.Array
    typical: jax.Array


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes. It holds no functions, and is saved and restored whole, so a run resumes exactly.

    `step` counts the batches seen. `ema_params` is the moving average of `params` (None without one). `key` never
    changes: step n draws from fold_in(key, n).
    """

    step: jax.Array
    params: Params
    ema_params: Params | None
    opt_state: optax.OptState
    key: Key
    refused: Refused

    @classmethod
    def create(
        cls, params: Params, optimizer: optax.GradientTransformation, seed: int | Key, *, ema: bool = True
    ) -> "TrainState":
        """Returns the state before the first step. `seed` may also be a key, which can be traced."""
        # Copies, because a step donates each of the state's buffers
        average = jax.tree.map(jnp.array, params) if ema else None
        opt_state = jax.tree.map(jnp.array, optimizer.init(params))
        none = Refused(jnp.zeros([], jnp.int32), jnp.zeros([], jnp.int32), jnp.zeros([]))
        key = make_key(seed) if isinstance(seed, int) else seed
        return cls(jnp.zeros([], jnp.int32), params, average, opt_state, key, none)

    @property
    def updates(self) -> jax.Array:
        """The number of steps that changed the parameters."""
        return self.step - self.refused.total


@dataclasses.dataclass(frozen=True)
class GuardConfig:
    """Which steps are refused.

    A step is refused if its loss or gradient is not finite. With `spike` it is also refused if its gradient is more
    than `spike` times the usual one; the first `after` steps only measure the usual one. A run ends after `limit`
    refused steps in a row.
    """

    spike: float | None = None
    after: int = needs(100, lambda guard: guard.spike is not None, "without a guard against spikes (guard.spike)")
    limit: int = 10

    def __post_init__(self) -> None:
        if self.spike is not None and self.spike <= 1:
            raise ValueError(f"a spike is more than 1 times the usual gradient; got {self.spike}")
        if self.after < 1 or self.limit < 1:
            raise ValueError(f"the guard's after and limit are at least 1; got {self.after} and {self.limit}")


FORGET = 0.02  # weight of the newest step in the usual gradient


def judge(
    state: TrainState, loss: jax.Array, norm: jax.Array, spike: tuple[Any, Any] | None
) -> tuple[jax.Array, Refused]:
    """Returns whether a step with this loss and gradient norm is taken, and the new counts of refused steps.

    `spike` is (GuardConfig.spike, GuardConfig.after), or None if no finite gradient is too large.
    """
    taken = jnp.isfinite(loss) & jnp.isfinite(norm)
    if spike is not None:
        taken &= (state.updates < spike[1]) | (norm <= spike[0] * state.refused.typical)
    old = state.refused
    weight = jnp.maximum(FORGET, 1.0 / (state.updates + 1))  # a plain mean at first
    typical = jnp.where(taken, old.typical + weight * (norm - old.typical), old.typical)
    bad = (~taken).astype(jnp.int32)
    return taken, Refused(old.total + bad, (old.in_a_row + bad) * bad, typical)


def ema_decay(step: jax.Array, decay: jax.typing.ArrayLike) -> jax.Array:
    """Returns min(decay, (1 + n) / (10 + n)) at the n-th update, n from 1, so that the average forgets its start.

    Source: ldm/modules/ema.py:LitEma, which counts n before it uses it.
    """
    n = step.astype(jnp.float32)
    return jnp.minimum(decay, (1 + n) / (10 + n))


def update_ema(average: Params, params: Params, decay: jax.Array) -> Params:
    """Returns average - (1 - decay) (average - params)."""
    return jax.tree.map(lambda a, p: a - (1 - decay) * (a - p), average, params)
