"""The optimiser of a run, from its description."""

import dataclasses
from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

from sdjax.typing import Params

ADAM_RMS = 0.2  # root mean square of AdamW's updates in units of the learning rate, as measured in Muon's second source


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """An optimiser with a learning rate that rises over `warmup` steps, stays, and falls to 0 over the last `cooldown`.

    `name` is "adamw" or "muon", which orthogonalises the momentum of every kernel and leaves the rest to AdamW with
    Nesterov's momentum; its updates have AdamW's usual size, so that learning rates carry over. `steps` is the length
    of the whole run. Only the cooldown depends on it, so a run can be made longer until then. `clip` bounds the
    gradients' global norm. Weight decay acts on matrices and kernels, not on biases and scales.

    Source: Loshchilov & Hutter 2017 (arXiv 1711.05101); Muon: Jordan et al. 2024 (kellerjordan.github.io/posts/muon),
    its scale: Liu et al. 2025 (arXiv 2502.16982), section 2.2.
    """

    steps: int
    name: str = "adamw"
    learning_rate: float = 1e-4
    warmup: int = 0
    cooldown: int = 0
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.01
    clip: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in OPTIMIZERS:
            raise ValueError(f"the optimiser is one of {', '.join(OPTIMIZERS)}; got {self.name!r}")
        if min(self.steps, self.warmup, self.cooldown) < 0 or self.warmup + self.cooldown > self.steps:
            raise ValueError(
                f"warm-up and cooldown fit into the run's steps; got {self.warmup} and {self.cooldown} of {self.steps}"
            )
        if self.learning_rate <= 0 or self.clip <= 0:
            raise ValueError(f"learning rate and clip are positive; got {self.learning_rate} and {self.clip}")


def learning_rate(config: OptimConfig) -> optax.Schedule:
    """Returns the learning rate as a function of the number of steps taken before."""
    rate = config.learning_rate
    return optax.join_schedules(
        [
            optax.linear_schedule(rate / max(config.warmup, 1), rate, config.warmup),
            optax.linear_schedule(rate, 0.0, config.cooldown),
        ],
        [config.steps - config.cooldown],
    )


def make_optimizer(config: OptimConfig) -> optax.GradientTransformation:
    """Returns the gradient transformation."""
    return optax.chain(optax.clip_by_global_norm(config.clip), OPTIMIZERS[config.name](config))


def _adamw(config: OptimConfig) -> optax.GradientTransformation:
    rate, decay = learning_rate(config), config.weight_decay
    return optax.adamw(rate, config.beta1, config.beta2, weight_decay=decay, mask=_matrices)


def _muon(config: OptimConfig) -> optax.GradientTransformation:
    rate, decay = learning_rate(config), config.weight_decay
    return muon(
        rate, weight_decay=decay, weight_decay_mask=_matrices, adam_b1=config.beta1, adam_b2=config.beta2,
        adam_weight_decay=decay, muon_weight_dimension_numbers=_kernels, consistent_rms=ADAM_RMS,
    )  # fmt: skip


def _matrices(params: Params) -> Any:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def _kernels(params: Params) -> Any:
    """Returns how every kernel is a matrix of inputs by outputs; None for embeddings and vectors, which are none."""

    def numbers(path: tuple, leaf: jax.Array) -> MuonDimensionNumbers | None:
        if path[-1].key != "kernel":
            return None
        return MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1)

    return jax.tree_util.tree_map_with_path(numbers, params)


OPTIMIZERS = {"adamw": _adamw, "muon": _muon}
