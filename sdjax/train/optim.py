"""The optimiser of a run, from its description."""

import dataclasses

import jax
import optax


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """AdamW with a learning rate that rises over `warmup` steps, stays, and falls to 0 over the last `cooldown`.

    `steps` is the length of the whole run. Only the cooldown depends on it, so a run can be made longer until then.
    `clip` bounds the gradients' global norm. Weight decay acts on matrices and kernels, not on biases and scales.
    """

    steps: int
    learning_rate: float = 1e-4
    warmup: int = 0
    cooldown: int = 0
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.01
    clip: float = 1.0

    def __post_init__(self) -> None:
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
    decayed = lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params)  # noqa: E731
    adamw = optax.adamw(
        learning_rate(config), config.beta1, config.beta2, weight_decay=config.weight_decay, mask=decayed
    )
    return optax.chain(optax.clip_by_global_norm(config.clip), adamw)
