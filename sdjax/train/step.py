"""One training step: draws, gradients, optimiser, moving average. A step that is not finite is refused as a whole."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sdjax.loading.trainable import lay_over
from sdjax.train.objectives.draws import keys_of
from sdjax.train.objectives.objective import Batch, Loss, Metrics
from sdjax.train.optim import Number, OptimNumbers
from sdjax.train.state import GuardConfig, TrainState, ema_decay, judge, update_ema
from sdjax.typing import Keys, Params

GUARD = GuardConfig()

TrainStep = Callable[..., tuple[TrainState, Metrics]]


class StepNumbers(NamedTuple):
    """Numbers of a step. They are arguments of the compiled program, so that new values need no compilation."""

    optim: OptimNumbers
    decay: Number  # the moving average's
    spike: Number
    after: Number


def make_train_step(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    decay: float | None,
    *,
    assemble: Callable[[Params, Params], Params] = lay_over,
    attach: Callable[[Params, Params], Params] | None = None,
    accumulate: int = 1,
    guard: GuardConfig = GUARD,
    axis: str | None = None,
    place_ema: Callable[[Params, bool], Params] | None = None,
    rate: Callable[[OptimNumbers | None, jax.Array], jax.Array] | None = None,
) -> TrainStep:
    """Returns the step (state, frozen, batch, numbers=None) -> (state, metrics), to be compiled.

    `frozen` holds the fixed parameters. `numbers` (StepNumbers) replaces the numbers given here, except those that are
    None here.

    Args:
        decay: the final decay of the moving average; None for a state without one.
        assemble: makes the loss's parameters from the trained and the fixed ones
            (`sdjax.loading.trainable.Trainable`).
        attach: makes those that the loss is differentiated by (`sdjax.loading.trainable.attach`).
        accumulate: the number of parts of a batch. They are processed one after the other; gradients are averaged.
        guard: which steps are refused. A refused step changes only the counts; its metrics report it.
        axis: under `pmap` or `shard_map`, the name of the axis over which gradients are averaged.
        place_ema: moves the average to where it is computed with (True) and back to where it is kept (False).
        rate: a function from the optimiser's numbers and the number of updates before to the learning rate.

    Metrics are the loss's own means, `gradient` (the global norm before clipping), `refused` (1 or 0) and, with `rate`,
    `learning_rate`.
    """

    def near(average: Params) -> Params:
        return average if place_ema is None else place_ema(average, True)

    def gradients(state: TrainState, frozen: Params, batch: Batch) -> tuple[Params, Metrics]:
        # Parts of the average that the loss does not read are neither moved nor computed
        teacher = None if state.ema_params is None else assemble(near(state.ema_params), frozen)
        rows = jax.tree.leaves(batch)[0].shape[0]
        first = 0 if axis is None else jax.lax.axis_index(axis) * rows
        keys = keys_of(state.key, state.step, first + jnp.arange(rows))

        def part(batch: Batch, keys: Keys) -> tuple[Params, Metrics]:
            def of(trained: Params) -> tuple[jax.Array, Metrics]:
                return loss((attach or assemble)(trained, frozen), teacher, batch, keys, state.step)

            return jax.grad(of, has_aux=True)(state.params)

        if accumulate == 1:
            return part(batch, keys)
        # Part i takes rows i, i + accumulate, ...: each device's are among its own
        split = lambda a: jnp.moveaxis(a.reshape(-1, accumulate, *a.shape[1:]), 1, 0)  # noqa: E731
        parts = jax.tree.map(split, (batch, keys))
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(part, *_first(parts)))
        add = lambda total, args: (jax.tree.map(jnp.add, total, part(*args)), None)  # noqa: E731
        total, _ = jax.lax.scan(add, zeros, parts)
        return jax.tree.map(lambda a: a / accumulate, total)

    def train_step(
        state: TrainState, frozen: Params, batch: Batch, numbers: StepNumbers | None = None
    ) -> tuple[TrainState, Metrics]:
        optim = None if numbers is None else numbers.optim
        options = {} if optim is None else {"numbers": optim}
        long_run, spike, after = (decay, guard.spike, guard.after) if numbers is None else numbers[1:]
        grads, metrics = gradients(state, frozen, batch)
        if axis is not None:
            grads, metrics = jax.lax.pmean((grads, metrics), axis)
        norm = optax.tree.norm(grads)
        taken, refused = judge(state, metrics["loss"], norm, None if guard.spike is None else (spike, after))
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params, **options)
        params = optax.apply_updates(state.params, updates)
        average = state.ema_params
        if average is not None and long_run is not None:
            now = near(average)
            new = update_ema(now, params, ema_decay(state.updates + 1, long_run))
            new = _chosen(taken, new, now)
            average = new if place_ema is None else place_ema(new, False)
        params, opt_state = _chosen(taken, (params, opt_state), (state.params, state.opt_state))
        metrics = {**metrics, "gradient": norm, "refused": 1.0 - taken}
        if rate is not None:
            metrics["learning_rate"] = rate(optim, state.updates)
        return TrainState(state.step + 1, params, average, opt_state, state.key, refused), metrics

    return train_step


def _first(parts: Any) -> Any:
    return jax.tree.map(lambda a: a[0], parts)


def _chosen(taken: jax.Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda n, o: jnp.where(taken, n, o), new, old)
