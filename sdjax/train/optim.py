"""The optimiser of a run, from its description."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, muon, prodigy

from sdjax.typing import Params

ADAM_RMS = 0.2  # root mean square of AdamW's updates in units of the learning rate, as measured in Muon's second source


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """An optimiser and its learning rate over the `steps` of a run.

    - `name`: "adamw", "adafactor", "lion", "prodigy" or "muon", which orthogonalises the momentum of every kernel and
      leaves the rest to AdamW with Nesterov's momentum; its updates have AdamW's usual size, so that learning rates
      carry over. Prodigy finds its own rate, and `learning_rate`, 1 then, multiplies it.
    - The rate rises from `warmup_from` times itself over `warmup` steps, linearly. With `decay` "constant" it stays,
      and falls to 0 over the last `cooldown`: only these depend on `steps`, so a run can be made longer until then.
      With "cosine" it falls from there to `final` times itself at the end.
    - `rates`: (regular expression, factor) pairs; the first that is found in a parameter's path, such as
      "unet/up_blocks_0/resnets_1/conv1/kernel", multiplies its learning rate. 0 leaves it as it is.
    - `clip` bounds the gradients' global norm, None leaves them. `weight_decay`, times the rate, acts on matrices and
      kernels (Muon's on kernels alone); with `decay_all` on all, as the reference's does and Prodigy's always.
    - `beta1` and `beta2` None are the optimiser's own; Adafactor has none, and its rate is relative to the size of what
      it changes.

    Sources: AdamW: Loshchilov & Hutter 2017 (arXiv 1711.05101); Adafactor: Shazeer & Stern 2018 (arXiv 1804.04235);
    Lion: Chen et al. 2023 (arXiv 2302.06675); Prodigy: Mishchenko & Defazio 2023 (arXiv 2306.06101); Muon: Jordan et
    al. 2024 (kellerjordan.github.io/posts/muon), its scale: Liu et al. 2025 (arXiv 2502.16982), section 2.2; the rates:
    ldm/lr_scheduler.py (LambdaLinearScheduler, LambdaWarmUpCosineScheduler).
    """

    steps: int
    name: str = "adamw"
    learning_rate: float = 1e-4
    warmup: int = 0
    warmup_from: float = 1e-6
    decay: Literal["constant", "cosine"] = "constant"
    cooldown: int = 0
    final: float = 0.0
    beta1: float | None = None
    beta2: float | None = None
    weight_decay: float = 0.01
    decay_all: bool = False
    clip: float | None = 1.0
    rates: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        if self.name not in OPTIMIZERS:
            raise ValueError(f"the optimiser is one of {', '.join(OPTIMIZERS)}; got {self.name!r}")
        if self.decay not in ("constant", "cosine"):
            raise ValueError(f'the learning rate\'s decay is "constant" or "cosine"; got {self.decay!r}')
        if min(self.steps, self.warmup, self.cooldown) < 0 or self.warmup + self.cooldown > self.steps:
            raise ValueError(
                f"warm-up and cooldown fit into the run's steps; got {self.warmup} and {self.cooldown} of {self.steps}"
            )
        if self.decay == "cosine" and self.cooldown:
            raise ValueError(f"a cosine needs no cooldown; got {self.cooldown} steps of it")
        if self.learning_rate <= 0 or (self.clip is not None and self.clip <= 0):
            raise ValueError(f"learning rate and clip are positive; got {self.learning_rate} and {self.clip}")
        if min(self.warmup_from, self.final, self.weight_decay, *(factor for _, factor in self.rates), 0) < 0:
            raise ValueError("warmup_from, final, weight_decay and the factors of rates are not negative")
        if self.name == "adafactor" and (self.beta1, self.beta2) != (None, None):
            raise ValueError("adafactor has no beta1 and beta2: leave them out")


def learning_rate(config: OptimConfig) -> optax.Schedule:
    """Returns the learning rate as a function of the number of steps taken before."""
    rate, start = config.learning_rate, config.warmup_from

    def rise(n: jax.Array) -> jax.Array:
        return rate * (start + (1 - start) * n / max(config.warmup, 1))

    if config.decay == "cosine":
        fall = optax.cosine_decay_schedule(rate, max(config.steps - config.warmup, 1), config.final)
        return optax.join_schedules([rise, fall], [config.warmup])
    stay, fall = optax.constant_schedule(rate), optax.linear_schedule(rate, 0.0, config.cooldown)
    return optax.join_schedules([rise, stay, fall], [config.warmup, config.steps - config.cooldown])


def make_optimizer(config: OptimConfig) -> optax.GradientTransformation:
    """Returns the gradient transformation. It has no state for parameters whose rate is 0."""

    def trained(params: Params) -> Any:
        return jax.tree.map(bool, factors(config.rates, params))

    def fixed(params: Params) -> Any:
        return jax.tree.map(lambda factor: not factor, factors(config.rates, params))

    chain = [] if config.clip is None else [optax.clip_by_global_norm(config.clip)]
    chain.append(OPTIMIZERS[config.name](config))
    if not config.rates:
        return optax.chain(*chain)
    chain.append(
        optax.stateless(lambda updates, params: jax.tree.map(jnp.multiply, updates, factors(config.rates, updates)))
    )
    return optax.chain(optax.masked(optax.set_to_zero(), fixed), optax.masked(optax.chain(*chain), trained))


def factors(rates: tuple[tuple[str, float], ...], params: Params) -> Any:
    """Returns what multiplies the learning rate of every parameter."""

    def of(path: tuple, _: Any) -> float:
        name = "/".join(key.key for key in path)
        return next((factor for pattern, factor in rates if re.search(pattern, name)), 1.0)

    return jax.tree_util.tree_map_with_path(of, params)


def _betas(config: OptimConfig, beta1: float, beta2: float) -> tuple[float, float]:
    return beta1 if config.beta1 is None else config.beta1, beta2 if config.beta2 is None else config.beta2


def _adamw(config: OptimConfig) -> optax.GradientTransformation:
    betas = _betas(config, 0.9, 0.999)
    return optax.adamw(learning_rate(config), *betas, weight_decay=config.weight_decay, mask=_decayed(config))


def _adafactor(config: OptimConfig) -> optax.GradientTransformation:
    rate = learning_rate(config)
    decay = (lambda n: config.weight_decay * rate(n)) if config.weight_decay else None  # optax's is not times the rate
    return optax.adafactor(rate, weight_decay_rate=decay, weight_decay_mask=_decayed(config))


def _lion(config: OptimConfig) -> optax.GradientTransformation:
    betas = _betas(config, 0.9, 0.99)
    return optax.lion(learning_rate(config), *betas, weight_decay=config.weight_decay, mask=_decayed(config))


def _prodigy(config: OptimConfig) -> optax.GradientTransformation:
    betas = _betas(config, 0.9, 0.999)
    return prodigy(learning_rate(config), betas, weight_decay=config.weight_decay)


def _muon(config: OptimConfig) -> optax.GradientTransformation:
    beta1, beta2 = _betas(config, 0.9, 0.999)
    decay = config.weight_decay
    return muon(
        learning_rate(config), weight_decay=decay, weight_decay_mask=_decayed(config), adam_b1=beta1, adam_b2=beta2,
        adam_weight_decay=decay * config.decay_all, muon_weight_dimension_numbers=_kernels, consistent_rms=ADAM_RMS,
    )  # fmt: skip


def _decayed(config: OptimConfig) -> Callable[[Params], Any]:
    """Returns what says which parameters decay."""
    return lambda params: jax.tree.map(lambda leaf: config.decay_all or leaf.ndim > 1, params)


def _kernels(params: Params) -> Any:
    """Returns how every kernel is a matrix of inputs by outputs; None for embeddings and vectors, which are none."""

    def numbers(path: tuple, leaf: jax.Array) -> MuonDimensionNumbers | None:
        if path[-1].key != "kernel" or leaf.ndim < 2:
            return None
        return MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1)

    return jax.tree_util.tree_map_with_path(numbers, params)


OPTIMIZERS: dict[str, Callable[[OptimConfig], optax.GradientTransformation]] = {
    "adamw": _adamw, "adafactor": _adafactor, "lion": _lion, "prodigy": _prodigy, "muon": _muon,
}  # fmt: skip
