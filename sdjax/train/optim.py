"""Builds the optimiser of a run from its configuration."""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree
from optax.contrib import MuonDimensionNumbers, dadapt_adamw, muon, prodigy

from sdjax.checks.effects import Needs, needs
from sdjax.typing import Params

ADAM_RMS = 0.2  # root mean square of AdamW's updates in units of the learning rate, as measured in Muon's second source
UP = r"/up(_[12])?$"  # the factors of low-rank changes that LoRA+ is about
OWN_DECAY = ("prodigy", "dadapt_adamw")  # they apply weight decay to all parameters


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """An optimiser and its learning rate over the `steps` of a run.

    - `name`: "adamw", "adafactor", "lion", "sgd", "prodigy", "dadapt_adamw" or "muon". Muon orthogonalises the momentum
      of every kernel; other parameters use AdamW with Nesterov's momentum. Its updates have AdamW's usual size, so
      AdamW's learning rates also fit Muon. Prodigy and D-Adaptation find their own rate and multiply it by
      `learning_rate`, which should be 1. SGD has Nesterov's momentum, `beta1`.
    - `epochs`: passes over the training set, which a run turns into `steps`; None for `steps` as given.
    - `warmup`: steps over which the rate rises linearly, from `warmup_from` times its full value. None is a tenth of
      the run, at most `warmup_most` steps and the steps before the cooldown.
    - `decay`: "constant", "linear", "cosine", "cosine_with_restarts" or "polynomial". A constant rate falls to 0 over
      the last `cooldown` steps. Before these it does not depend on `steps`, so a run can still be made longer. With the
      others the rate falls from the end of the warm-up to `final` times its full value at the end: once, or `cycles`
      times from the full value ("cosine_with_restarts"); with the power `power` of the time that is left
      ("polynomial").
    - `rates`: (regular expression, factor) pairs. The first that matches in a parameter's path, such as
      "unet/up_blocks_0/resnets_1/conv1/kernel", multiplies its learning rate. A parameter with factor 0 does not
      change.
    - `part_rates`: learning rates of parts of the model instead of `learning_rate`, such as {"text": 5e-5}. `up_rate`
      multiplies the rate of LoRA's `up` factors, as in LoRA+. Both multiply with `rates`.
    - `clip`: the bound of the gradients' global norm; None for no bound.
    - `weight_decay`: multiplied by the rate; applies to matrices and kernels (with Muon to kernels only). With
      `decay_all` it applies to all parameters, as in the reference, and always with Prodigy and D-Adaptation.
    - `beta1`, `beta2`: None is the optimiser's own default. Adafactor has none, and its rate is relative to the size of
      the parameter; SGD has no `beta2`.

    Sources: AdamW: Loshchilov & Hutter 2017 (arXiv 1711.05101); Adafactor: Shazeer & Stern 2018 (arXiv 1804.04235);
    Lion: Chen et al. 2023 (arXiv 2302.06675); Prodigy: Mishchenko & Defazio 2023 (arXiv 2306.06101);
    D-Adaptation: Defazio & Mishchenko 2023 (arXiv 2301.07733); Muon: Jordan et
    al. 2024 (kellerjordan.github.io/posts/muon), its scale: Liu et al. 2025 (arXiv 2502.16982), section 2.2; the rates:
    ldm/lr_scheduler.py (LambdaLinearScheduler, LambdaWarmUpCosineScheduler); restarts: Loshchilov & Hutter 2016 (arXiv
    1608.03983); LoRA+: Hayou et al. 2024 (arXiv 2402.12354).
    """

    steps: int = dataclasses.field(
        metadata={"needs": Needs(lambda c: c.epochs is None, "beside optim.epochs, which says how long a run is")}
    )
    name: str = "adamw"
    learning_rate: float = 1e-4
    warmup: int | None = 0
    warmup_most: int = 500
    warmup_from: float = needs(1e-6, lambda c: c.warmup != 0, "without a warm-up")
    decay: Literal["constant", "linear", "cosine", "cosine_with_restarts", "polynomial"] = "constant"
    cooldown: int = 0
    final: float = needs(0.0, lambda c: c.decay != "constant", 'with decay "constant"')
    cycles: int = needs(1, lambda c: c.decay == "cosine_with_restarts", 'but with decay "cosine_with_restarts"')
    power: float = needs(1.0, lambda c: c.decay == "polynomial", 'but with decay "polynomial"')
    beta1: float | None = None
    beta2: float | None = None
    weight_decay: float = 0.01
    decay_all: bool = needs(
        False, lambda c: c.weight_decay > 0 and c.name not in OWN_DECAY, "without weight_decay, and with Prodigy's own"
    )
    clip: float | None = 1.0
    rates: tuple[tuple[str, float], ...] = ()
    part_rates: dict[str, float] = dataclasses.field(default_factory=dict)
    up_rate: float = 1.0
    epochs: int | None = None

    def __post_init__(self) -> None:
        if self.name not in OPTIMIZERS:
            raise ValueError(f"the optimiser is one of {', '.join(OPTIMIZERS)}; got {self.name!r}{_nearest(self.name)}")
        if self.decay != "constant" and self.decay not in DECAYS:
            raise ValueError(f"the learning rate's decay is one of constant, {', '.join(DECAYS)}; got {self.decay!r}")
        if self.cycles < 1 or not 0 < self.power < math.inf or (self.epochs is not None and self.epochs < 1):
            raise ValueError(
                f"cycles and epochs are at least 1, and power is above 0; got {self.cycles}, {self.epochs} and "
                f"{self.power}"
            )
        warmup = self.warmup or 0
        if min(self.steps, warmup, self.warmup_most, self.cooldown) < 0 or warmup + self.cooldown > self.steps:
            raise ValueError(
                f"warm-up and cooldown fit into the run's steps; got {warmup} and {self.cooldown} of {self.steps}: "
                "lower them, or set warmup to None, which fits"
            )
        if self.decay != "constant" and self.cooldown:
            raise ValueError(f"a rate that falls ({self.decay}) needs no cooldown; got {self.cooldown} steps of it")
        if not 0 < self.learning_rate < math.inf or (self.clip is not None and not self.clip > 0):
            raise ValueError(f"learning rate and clip are positive; got {self.learning_rate} and {self.clip}")
        if min(self.warmup_from, self.final, self.weight_decay, *(factor for _, factor in self.rates), 0) < 0:
            raise ValueError("warmup_from, final, weight_decay and the factors of rates are not negative")
        for name, rate in self.part_rates.items():
            if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < math.inf:
                raise ValueError(f"part_rates holds learning rates from 0 up; got {rate!r} for {name!r}")
        if not 0 < self.up_rate < math.inf:
            raise ValueError(f"up_rate is above 0; got {self.up_rate}")
        for name, beta in ("beta1", self.beta1), ("beta2", self.beta2):
            if beta is not None and not 0 <= beta < 1:
                raise ValueError(f"{name} is from 0 to below 1, or None; got {beta}")
        for pattern, _ in self.rates:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"rates begin with a regular expression; {pattern!r} is none ({error})") from None
        if self.name == "adafactor" and (self.beta1, self.beta2) != (None, None):
            raise ValueError("adafactor has no beta1 and beta2: leave them out")
        if self.name == "sgd" and self.beta2 is not None:
            raise ValueError("sgd has no beta2: leave it out")
        if self.name == "dadapt_adamw" and warmup and not self.warmup_from:
            raise ValueError("dadapt_adamw divides by its first step: warmup_from is above 0")

    @property
    def tables(self) -> tuple[tuple[tuple[str, float], ...], ...]:
        """Tables like `rates`; a parameter's factor is the product of its factors in all of them. Empty without any."""
        parts = tuple((f"^{re.escape(part)}/", rate / self.learning_rate) for part, rate in self.part_rates.items())
        up = () if self.up_rate == 1 else ((UP, self.up_rate),)
        return tuple(table for table in (self.rates, parts, up) if table)

    @property
    def warmup_steps(self) -> int:
        """The number of steps over which the rate rises."""
        return (
            min(self.warmup_most, self.steps // 10, self.steps - self.cooldown) if self.warmup is None else self.warmup
        )


def _nearest(name: str) -> str:
    """Returns the end of a message about an optimiser that other tools have, such as "AdamW8bit"."""
    low = name.casefold()
    near = next((known for known in reversed(OPTIMIZERS) if known.partition("_")[0] in low), None)
    bits = ", with its state in float32 instead of 8 bits" * ("8bit" in low)
    return "" if near is None else f": the nearest is {near}{bits}"


Number: TypeAlias = np.number | jax.Array  # on the host, or of a compiled step


class OptimNumbers(NamedTuple):
    """An optimiser's numbers. They are arguments of the compiled step, so that new values need no compilation."""

    steps: Number
    warmup: Number
    cooldown: Number
    learning_rate: Number
    warmup_from: Number
    final: Number
    cycles: Number
    power: Number
    weight_decay: Number
    beta1: Number
    beta2: Number
    clip: Number
    tables: tuple[tuple[Number, ...], ...]

    @classmethod
    def of(cls, config: OptimConfig) -> "OptimNumbers":
        """Returns a configuration's numbers, int32 and float32; `clip` is 0 for no bound."""
        beta1, beta2 = _BETAS.get(config.name, (0.0, 0.0))
        beta1, beta2 = beta1 if config.beta1 is None else config.beta1, beta2 if config.beta2 is None else config.beta2
        steps, warmup, cooldown = (np.int32(n) for n in (config.steps, config.warmup_steps, config.cooldown))
        return cls(
            steps, warmup, cooldown, np.float32(config.learning_rate), np.float32(config.warmup_from),
            np.float32(config.final), np.int32(config.cycles), np.float32(config.power),
            np.float32(config.weight_decay), np.float32(beta1), np.float32(beta2),
            np.float32(config.clip or 0.0),
            tuple(tuple(np.float32(factor) for _, factor in table) for table in config.tables),
        )  # fmt: skip


def learning_rate(config: OptimConfig, numbers: OptimNumbers | None = None) -> optax.Schedule:
    """Returns the learning rate as a function of the number of steps taken before.

    `numbers` replace the description's own; they may be traced.
    """
    c = OptimNumbers.of(config) if numbers is None else numbers

    def rate(n: jax.typing.ArrayLike) -> jax.Array:
        rise = c.warmup_from + (1 - c.warmup_from) * n / jnp.maximum(c.warmup, 1)
        if config.decay != "constant":
            along = jnp.clip((n - c.warmup) / jnp.maximum(c.steps - c.warmup, 1), 0, 1)
            later = c.final + (1 - c.final) * DECAYS[config.decay](along, c)
        else:
            fall = jnp.clip((c.steps - n) / jnp.maximum(c.cooldown, 1), 0, 1)
            later = jnp.where((c.cooldown > 0) & (n > c.steps - c.cooldown), fall, 1.0)
        return c.learning_rate * jnp.where(n < c.warmup, rise, later)

    return rate


def make_optimizer(config: OptimConfig) -> optax.GradientTransformationExtraArgs:
    """Returns the gradient transformation. It has no state for parameters whose rate is 0.

    Its `update` takes OptimNumbers as `numbers`, which replace the description's own.
    """
    own = OptimNumbers.of(config)

    def update(
        updates: Params, state: Any, params: Params | None = None, *, numbers: OptimNumbers | None = None, **_: Any
    ) -> tuple[Params, Any]:
        return _transformation(config, own if numbers is None else numbers).update(updates, state, params)

    return optax.GradientTransformationExtraArgs(_transformation(config, own).init, update)


def _transformation(config: OptimConfig, numbers: OptimNumbers) -> optax.GradientTransformation:
    def trained(params: Params) -> Any:
        return jax.tree.map(bool, factors(config.tables, params))

    def fixed(params: Params) -> Any:
        return jax.tree.map(lambda factor: not factor, factors(config.tables, params))

    chain = [] if config.clip is None else [optax.clip_by_global_norm(numbers.clip)]
    chain.append(OPTIMIZERS[config.name](config, numbers))
    if not config.tables:
        return optax.chain(*chain)
    tables = tuple(
        tuple((pattern, factor) for (pattern, _), factor in zip(table, own))
        for table, own in zip(config.tables, numbers.tables)
    )
    chain.append(optax.stateless(lambda updates, _: jax.tree.map(jnp.multiply, updates, factors(tables, updates))))
    return optax.chain(optax.masked(optax.set_to_zero(), fixed), optax.masked(optax.chain(*chain), trained))


def factors(tables: Sequence[Sequence[tuple[str, Number | float]]], params: Params) -> PyTree:
    """Returns the factor of every parameter's learning rate, the product of its factors in the tables."""

    def of(path: tuple, _: Any) -> Any:
        name = "/".join(key.key for key in path)
        found = [next((f for pattern, f in table if re.search(pattern, name)), 1.0) for table in tables]
        return math.prod(found)

    return jax.tree_util.tree_map_with_path(of, params)


def _adamw(config: OptimConfig, c: OptimNumbers) -> optax.GradientTransformation:
    rate = learning_rate(config, c)
    return optax.adamw(rate, c.beta1, c.beta2, weight_decay=c.weight_decay, mask=_decayed(config))


def _adafactor(config: OptimConfig, c: OptimNumbers) -> optax.GradientTransformation:
    rate = learning_rate(config, c)
    decay = (lambda n: c.weight_decay * rate(n)) if config.weight_decay else None  # optax's is not times the rate
    return optax.adafactor(rate, weight_decay_rate=decay, weight_decay_mask=_decayed(config))


def _lion(config: OptimConfig, c: OptimNumbers) -> optax.GradientTransformation:
    rate = learning_rate(config, c)
    return optax.lion(rate, c.beta1, c.beta2, weight_decay=c.weight_decay, mask=_decayed(config))


def _prodigy(config: OptimConfig, c: OptimNumbers) -> optax.GradientTransformation:
    return prodigy(learning_rate(config, c), (c.beta1, c.beta2), weight_decay=c.weight_decay)


def _dadapt_adamw(config: OptimConfig, c: OptimNumbers) -> optax.GradientTransformation:
    return dadapt_adamw(learning_rate(config, c), (c.beta1, c.beta2), weight_decay=c.weight_decay)


def _sgd(config: OptimConfig, c: OptimNumbers) -> optax.GradientTransformation:
    rate = learning_rate(config, c)
    decayed = optax.add_decayed_weights(c.weight_decay, _decayed(config))
    return optax.chain(optax.trace(c.beta1, nesterov=True), decayed, optax.scale_by_learning_rate(rate))


def _muon(config: OptimConfig, c: OptimNumbers) -> optax.GradientTransformation:
    return muon(
        learning_rate(config, c), weight_decay=c.weight_decay, weight_decay_mask=_decayed(config), adam_b1=c.beta1,
        adam_b2=c.beta2, adam_weight_decay=c.weight_decay * config.decay_all, muon_weight_dimension_numbers=_kernels,
        consistent_rms=ADAM_RMS,
    )  # fmt: skip


def _decayed(config: OptimConfig) -> Callable[[Params], Any]:
    """Returns a function that returns which parameters decay."""
    return lambda params: jax.tree.map(lambda leaf: config.decay_all or leaf.ndim > 1, params)


def _kernels(params: Params) -> Any:
    """Returns the input and output axes of every kernel; None for embeddings and vectors, which are not kernels."""

    def numbers(path: tuple, leaf: jax.Array) -> MuonDimensionNumbers | None:
        if path[-1].key != "kernel" or leaf.ndim < 2:
            return None
        return MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1)

    return jax.tree_util.tree_map_with_path(numbers, params)


def _cosine(along: jax.Array) -> jax.Array:
    return 0.5 * (1 + jnp.cos(jnp.pi * along))


# How far the rate still is from its final value, 1 to 0, of (the share of the time since the warm-up, numbers)
DECAYS: dict[str, Callable[[jax.Array, OptimNumbers], jax.Array]] = {
    "linear": lambda along, c: 1 - along,
    "cosine": lambda along, c: _cosine(along),
    "cosine_with_restarts": lambda along, c: jnp.where(along < 1, _cosine(along * c.cycles % 1), 0.0),
    "polynomial": lambda along, c: (1 - along) ** c.power,
}

_BETAS = {
    "lion": (0.9, 0.99), "adamw": (0.9, 0.999), "prodigy": (0.9, 0.999), "dadapt_adamw": (0.9, 0.999),
    "muon": (0.9, 0.999), "sgd": (0.9, 0.0),
}  # fmt: skip

OPTIMIZERS: dict[str, Callable[[OptimConfig, OptimNumbers], optax.GradientTransformation]] = {
    "adamw": _adamw, "adafactor": _adafactor, "lion": _lion, "sgd": _sgd, "prodigy": _prodigy,
    "dadapt_adamw": _dadapt_adamw, "muon": _muon,
}  # fmt: skip
