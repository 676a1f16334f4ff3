"""Builds the loss, the train step and all array shapes of a run from its description. Nothing is allocated."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sdjax.adapters.attached import Attached
from sdjax.adapters.patch import patched
from sdjax.config import ConfigError, ModelConfig
from sdjax.loading.trainable import Addition, Trainable, attach
from sdjax.loading.trainable.control import ControlTraining
from sdjax.loading.trainable.image_prompt import ImagePromptTraining
from sdjax.nn import param_shapes
from sdjax.pipeline.placement import default_dtype
from sdjax.prompts.tokenizer import Tokenizer
from sdjax.train.config import DataConfig, TrainConfig
from sdjax.train.objectives.objective import Batch, Loss, Losses, Metrics, Objective, RunFacts
from sdjax.train.optim import OptimConfig, OptimNumbers, learning_rate, make_optimizer
from sdjax.train.planning import flops
from sdjax.train.state import TrainState
from sdjax.train.step import StepNumbers, TrainStep, make_train_step
from sdjax.typing import Key, Keys, Params

Shape = jax.ShapeDtypeStruct
P = ParamSpec("P")
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Setup:
    """The configuration of a run and of the model that it trains.

    `text` says how training batches hold captions: "ids" (tokens) or "context" (the text encoder's output). A cache of
    latents decides it. `held_out` says the same for the validation set; it is None without one.

    Raises ConfigError if the run and the model do not fit together.
    """

    config: TrainConfig
    model: ModelConfig
    text: str = "ids"
    held_out: str | None = None

    def __post_init__(self) -> None:
        self.objective.check(self.facts)
        if self.model.unet.guidance_dim is not None and self.config.train != ("vae",):
            raise ConfigError(
                "a model that takes the guidance scale as an input (LCM) cannot be trained: train the model it was "
                "made of, or an LCM-LoRA"
            )
        if self.added and any(self.facts.cached):
            raise ConfigError(f"a cache of latents holds no {next(iter(self.added))!r}: give data.parts, not cached")

    @property
    def sets(self) -> tuple[DataConfig, ...]:
        """The training set, and the held-out set if there is one."""
        return tuple(data for data in (self.config.data, self.config.validation.data) if data is not None)

    @property
    def latents(self) -> bool:
        """Whether batches hold moments instead of pictures."""
        return bool(self.config.data.cached)

    @property
    def objective(self) -> Objective:
        """The objective that the run minimises."""
        return self.config.minimised

    @property
    def trainable(self) -> Trainable:
        """The selection of parameters that learn."""
        return self.config.trainable

    @property
    def added(self) -> Mapping[str, int]:
        """The words that the run adds to the model, each with its number of tokens."""
        return self.trainable.added if isinstance(self.trainable, Addition) else {}

    @functools.cached_property
    def facts(self) -> RunFacts:
        """The facts about the run that the objective may use."""
        c = self.config
        return RunFacts(
            self.model,
            c.train,
            cached=tuple(bool(data.cached) for data in self.sets),
            masks=tuple(bool(data.masks) for data in self.sets),
            hints=tuple(data.hints is not None for data in self.sets),
            control=self.trainable if isinstance(self.trainable, ControlTraining) else None,
            image_prompt=self.trainable if isinstance(self.trainable, ImagePromptTraining) else None,
            captions=(self.text,) if self.held_out is None else (self.text, self.held_out),
            dtype=self.dtype,
            remat=c.remat,
            timesteps=c.validation.timesteps,
            average=c.ema.decay is not None,
        )

    @functools.cached_property
    def dtype(self) -> str:
        """The type that the networks compute in."""
        return self.config.dtype or default_dtype()

    @functools.cached_property
    def frozen_dtype(self) -> str:
        """The type that fixed parameters are held in."""
        return self.config.frozen_dtype or self.dtype

    @functools.cached_property
    def optim(self) -> OptimConfig:
        """The configuration of the run's optimiser, with what its trainable holds fixed."""
        held = self.trainable.held if isinstance(self.trainable, Addition) else None
        own = self.config.optim
        return own if held is None else dataclasses.replace(own, rates=((held, 0.0), *own.rates))

    @functools.cached_property
    def optimizer(self) -> optax.GradientTransformation:
        """The run's optimiser."""
        return make_optimizer(self.optim)

    def split(self, base: Params, key: Key, tokenizer: Tokenizer | None = None) -> tuple[Params, Params]:
        """Returns the trained and the fixed parameters of the model and of the objective's own networks.

        `base` holds all parts of the model that are trained or read; `tokenizer` is the model's, which new words start
        from. Raises ConfigError if nothing learns.
        """
        return self._split(base, key, self.objective.networks(key), tokenizer)

    def _split(
        self, base: Params, key: Key, networks: tuple[Params, Params], tokenizer: Tokenizer | None = None
    ) -> tuple[Params, Params]:
        learning, fixed = networks
        trained = {part: base[part] for part in self.config.train}
        others = {part: base[part] for part in self.objective.reads(self.facts) if part not in trained}
        copies = {name: base[part] for name, part in self.objective.copies().items()}
        what = self.trainable
        if isinstance(what, Addition):
            what = what.prepared(self.model, tokenizer)
        return {**what.init(trained, key), **learning}, {**others, **copies, **what.fixed(trained), **fixed}

    def loss(self, empty: np.ndarray, axis: str | None = None) -> Loss:
        """Returns the loss. `empty` holds the tokens or the context of the empty caption."""
        return _with_attached(self.objective.make_loss(self.facts, empty, axis))

    def loss_of_trained(self, empty: np.ndarray) -> Callable[..., tuple[jax.Array, Metrics]]:
        """Returns the loss as a function of the trained parameters: (trained, frozen, average, batch, keys, step)."""
        loss, what = self.loss(empty), self.trainable

        def of(
            trained: Params, frozen: Params, average: Params | None, batch: Batch, keys: Keys, step: jax.Array
        ) -> tuple[jax.Array, Metrics]:
            teacher = None if average is None else what.assemble(average, frozen)
            return loss(attach(what, trained, frozen), teacher, batch, keys, step)

        return of

    def losses(self, empty: np.ndarray) -> Losses:
        """Returns the losses that a held-out set is measured with."""
        return _with_attached(self.objective.make_losses(self.facts, empty))

    @property
    def numbers(self) -> StepNumbers:
        """The numbers that the compiled step takes as arguments; 0 stands for an unused one."""
        c = self.config
        guard = np.float32(c.guard.spike or 0.0), np.int32(c.guard.after)
        return StepNumbers(OptimNumbers.of(self.optim), np.float32(c.ema.decay or 0.0), *guard)

    def step(self, empty: np.ndarray, place_ema: Callable[[Params, bool], Params] | None = None) -> TrainStep:
        """Returns the train step, not compiled."""
        c = self.config
        axis = "data" if c.parallel.mode == "pmap" else None
        return make_train_step(
            self.loss(empty, axis), self.optimizer, c.ema.decay, assemble=self.trainable.assemble,
            attach=functools.partial(attach, self.trainable),
            accumulate=c.accumulate, guard=c.guard, axis=axis, place_ema=place_ema,
            rate=lambda numbers, updates: learning_rate(self.optim, numbers)(updates),
        )  # fmt: skip

    def create(self, params: Params, key: Key | None = None) -> TrainState:
        """Returns the state before the first step. `key` defaults to the key of the run's seed."""
        seed = self.config.seed if key is None else key
        return TrainState.create(params, self.optimizer, seed, ema=self.config.ema.decay is not None)

    @functools.cached_property
    def shapes(self) -> tuple[TrainState, Params]:
        """The shapes of the state and of the fixed parameters."""
        networks = self.objective.network_shapes()
        split = functools.partial(self._split, networks=networks)
        trained, frozen = jax.eval_shape(split, param_shapes(self.model), jax.random.key(0))
        held = jnp.dtype(self.frozen_dtype)
        frozen = jax.tree.map(lambda leaf: Shape(leaf.shape, held), frozen)
        return jax.eval_shape(self.create, trained), frozen

    def batch_shapes(self, examples: int | None = None) -> dict[str, Shape]:
        """Returns the shapes of a batch of square pictures. `examples` replaces the batch size."""
        b, model = examples or self.config.batch_size, self.model
        side = model.image_size if self.config.data.side is None else self.config.data.side
        shapes = {"image": Shape((b, side, side, 3), jnp.uint8)}
        if self.latents:
            small = side // model.vae.factor
            shapes = {"moments": Shape((b, small, small, 2 * model.vae.latent_channels), jnp.float16)}
        if self.config.data.masks:
            shapes["mask"] = Shape((b, side, side), jnp.uint8)
        if self.config.data.hints is not None:
            shapes["hint"] = Shape((b, side, side, 3), jnp.uint8)
        if self.objective.captions:
            shapes["ids"] = Shape((b, model.text.max_length), jnp.int32)
            if self.text == "context":
                shapes["context"] = Shape((b, model.text.max_length, model.text.width), jnp.float16)
                del shapes["ids"]
        return shapes

    def empty_shape(self) -> np.ndarray:
        """Returns zeros in the shape of the empty caption's tokens or context, for uses that need only the shape."""
        text = self.model.text
        return np.zeros(text.max_length if self.text == "ids" else (text.max_length, text.width), np.int32)

    def flops(self) -> flops.Flops:
        """Returns the floating-point operations of a step, without the optimiser's."""
        state, frozen = self.shapes
        loss = self.loss_of_trained(self.empty_shape())
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), self.config.batch_size))
        args = frozen, state.ema_params, self.batch_shapes(), keys, Shape((), jnp.int32)
        return flops.count(loss, state.params, *args, remat=self.config.remat)


def _with_attached(function: Callable[P, T]) -> Callable[P, T]:
    """Returns the function, whose networks run with what lies beside their parameters."""

    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        with patched([Attached()]):
            return function(*args, **kwargs)

    return run
