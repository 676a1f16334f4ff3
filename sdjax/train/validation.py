"""The loss of a held-out set at fixed timesteps with fixed noise, so that runs and steps can be compared."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.train.objectives.objective import Batch, Losses
from sdjax.train.state import TrainState
from sdjax.typing import Params


@dataclasses.dataclass(frozen=True)
class Validation:
    """Measures the mean losses of a held-out set.

    `run(state)` returns "validation/loss" and "validation/NAME" of the moving average, and "validation/raw_NAME" of the
    parameters themselves. The "loss" is the mean over the timesteps. With `best`, the average's loss is also returned
    as "best".

    `losses` is compiled; `assemble` makes its parameters from the trained and the fixed ones. `batches(i)` returns
    batch i of `count`, on the devices, with `size` examples. `average(state)` puts the moving average on the devices.
    """

    losses: Losses
    assemble: Callable[[Params, Params], Params]
    batches: Callable[[int], Batch]
    count: int
    size: int
    frozen: Params
    best: bool
    average: Callable[[TrainState], Params | None] = lambda state: state.ema_params

    def run(self, state: TrainState) -> dict[str, float]:
        """See above."""
        average = self.average(state)
        teacher = None if average is None else self.assemble(average, self.frozen)
        sets = {} if teacher is None else {"": teacher}
        sets["raw_"] = self.assemble(state.params, self.frozen)
        sums: dict[str, list[jax.Array]] = {}
        for i in range(self.count):
            batch = self.batches(i)
            for prefix, whole in sets.items():
                for name, value in self.losses(whole, teacher, batch, jnp.int32(i * self.size)).items():
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
