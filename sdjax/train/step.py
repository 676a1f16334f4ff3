"""One training step: gradients, optimiser, moving average."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sdjax.train.objectives import Loss, Metrics
from sdjax.train.state import TrainState, ema_decay, update_ema

TrainStep = Callable[[TrainState, Any], tuple[TrainState, Metrics]]


def make_train_step(loss: Loss, optimizer: optax.GradientTransformation, decay: float) -> TrainStep:
    """Returns the compiled step (state, batch) -> (state, metrics); it consumes the state that it is given.

    `decay` is the moving average's in the long run.
    """

    def train_step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        grads, metrics = jax.grad(loss, has_aux=True)(state.params, batch, key)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        step = state.step + 1
        average = update_ema(state.ema_params, params, ema_decay(step, decay))
        metrics = {**metrics, "gradient": _norm(grads)}
        return TrainState(step, params, average, opt_state, state.key), metrics

    return jax.jit(train_step, donate_argnums=0)


def _norm(tree: Any) -> jax.Array:
    return jnp.sqrt(sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(tree)))
