"""The loss of a held-out set at fixed timesteps and with fixed noise, so that two runs, or two steps, compare."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.nn.jax_settings import make_key
from sdjax.train.objectives.diffusion import Denoising, Loss
from sdjax.train.objectives.draws import keys_of
from sdjax.train.state import TrainState
from sdjax.typing import Params

SEED = 20221124  # of the noise; every run has the same
Losses = Callable[[Params, Params, Any, jax.Array], dict[str, jax.Array]]


def denoising_losses(denoising: Denoising, count: int) -> Losses:
    """Returns (params, frozen, batch, first row) -> the batch's mean error at `count` timesteps: "t62", "t187", ...

    Timestep i of n is the middle of the i-th of n equal parts of the schedule. Nothing is dropped, offset or perturbed.
    """
    objective = dataclasses.replace(
        denoising.objective, dropout=0.0, label_dropout=0.0, offset_noise=0.0, perturbation=0.0
    )
    fixed = denoising._replace(objective=objective)
    total = denoising.config.schedule.num_timesteps
    timesteps = [int((i + 0.5) * total / count) for i in range(count)]

    def losses(params: Params, frozen: Params, batch: Any, row: jax.Array) -> dict[str, jax.Array]:
        b = jax.tree.leaves(batch)[0].shape[0]
        keys = keys_of(make_key(SEED), jnp.int32(0), row + jnp.arange(b))
        error = fixed.errors(params, frozen, batch, keys)
        errors = jax.lax.map(lambda t: error(jnp.broadcast_to(t, (b,))).mean(), jnp.array(timesteps))
        return {f"t{t}": errors[i] for i, t in enumerate(timesteps)}

    return losses


def plain_losses(loss: Loss) -> Losses:
    """Returns the same for a loss without timesteps: its own numbers, with fixed draws."""

    def losses(params: Params, frozen: Params, batch: Any, row: jax.Array) -> dict[str, jax.Array]:
        b = jax.tree.leaves(batch)[0].shape[0]
        keys = keys_of(make_key(SEED), jnp.int32(0), row + jnp.arange(b))
        return loss(params, frozen, batch, keys, jnp.int32(0))[1]

    return losses


@dataclasses.dataclass(frozen=True)
class Validation:
    """`run(state)` returns the mean losses of batches, "validation/loss" and "validation/NAME" of the moving average
    and "validation/raw_NAME" of the parameters themselves; with `best`, the average's loss once more as "best".

    `losses` is compiled; `batches(i)` is batch i of `count`, on the devices, `size` examples each; `average(state)`
    puts the moving average there. The "loss" is the mean over the timesteps.
    """

    losses: Losses
    batches: Callable[[int], Any]
    count: int
    size: int
    frozen: Params
    best: bool
    average: Callable[[TrainState], Params | None] = lambda state: state.ema_params

    def run(self, state: TrainState) -> dict[str, float]:
        """See above."""
        sets = {"raw_": state.params}
        if (average := self.average(state)) is not None:
            sets = {"": average, **sets}
        sums: dict[str, list[jax.Array]] = {}
        for i in range(self.count):
            batch = self.batches(i)
            for prefix, params in sets.items():
                for name, value in self.losses(params, self.frozen, batch, np.int32(i * self.size)).items():
                    sums.setdefault(prefix + name, []).append(value)
        means = {f"validation/{name}": float(np.mean(jax.device_get(values))) for name, values in sums.items()}
        for prefix in sets:
            name = f"validation/{prefix}loss"
            if name not in means:
                at = [value for key, value in means.items() if key.startswith(f"validation/{prefix}t")]
                means[name] = float(np.mean(at))
        if self.best:
            means["best"] = means["validation/loss" if "" in sets else "validation/raw_loss"]
        return means
