"""A run taken apart by what it computes: loss, step, and the shapes of all that they work on. Nothing is allocated."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sdjax.checks.notes import note
from sdjax.config import ConfigError, ModelConfig
from sdjax.nn import param_shapes
from sdjax.nn.metrics.discriminator import SMALLEST, Discriminator
from sdjax.nn.metrics.lpips import LPIPS
from sdjax.purpose import KINDS, kind_of
from sdjax.schedule import NoiseSchedule
from sdjax.train import validation
from sdjax.train.config import DataConfig, TrainConfig
from sdjax.train.objectives import conditioning
from sdjax.train.objectives.autoencoder import AutoencoderObjective, adversarial_loss
from sdjax.train.objectives.diffusion import Denoising, Loss, diffusion_loss
from sdjax.train.optim import OptimNumbers, learning_rate, make_optimizer
from sdjax.train.parallel import ParallelConfig
from sdjax.train.planning import flops
from sdjax.train.state import TrainState
from sdjax.train.step import StepNumbers, TrainStep, make_train_step
from sdjax.typing import Key, Params

Shape = jax.ShapeDtypeStruct


def default_dtype(platform: str) -> str:
    """Returns what networks compute in where nothing else is asked for."""
    return "float32" if platform == "cpu" else "bfloat16"


@dataclasses.dataclass(frozen=True)
class Setup:
    """A run's description, and that of the model it trains.

    `text` is what batches hold of captions, "ids" or "context", which a cache of latents decides; `held_out`, what
    those of the validation set do, None if there is none.

    Raises ConfigError where the two do not go together.
    """

    config: TrainConfig
    model: ModelConfig
    text: str = "ids"
    held_out: str | None = None

    def __post_init__(self) -> None:
        kind, objective = kind_of(self.model), self.config.objective
        if self.autoencoder:
            if any(data.cached for data in self.sets):
                raise ConfigError("an autoencoder is trained on pictures, not on cached latents")
            return
        if kind not in conditioning.CONDITIONS:
            raise ConfigError(
                f"{self.model.name} takes {self.model.unet.in_channels} channels: it is for {KINDS[kind]}"
            )
        if any(data.cached for data in self.sets) and kind != "text":
            raise ConfigError(f"a model for {KINDS[kind]} looks at pictures in training: give data.parts, not cached")
        if "text" in self.config.train and self.text == "context":
            raise ConfigError('a text encoder is trained on captions: make the cache with text "ids"')
        need = conditioning.NEEDS.get(kind)
        if need is not None and getattr(self.model, need) is None:
            raise ConfigError(f"this model holds no {need} network; name one by model.{need}")
        masks = objective.masked or (kind == "inpainting" and objective.holes == "given")
        if masks and not all(data.masks and not data.cached for data in self.sets):
            raise ConfigError("masks are asked for, of training and validation: set data.masks of pictures to True")
        objective.range_of(NoiseSchedule(self.model.schedule))
        for name, of, usual in ("label_dropout", "unclip", 0.0), ("holes", "inpainting", "random"):
            if kind != of and getattr(objective, name) != usual:
                note(f"objective.{name} has no effect but for a model of {KINDS[of]}: leave it out")
        if self.config.data.masks and not masks:
            note("data.masks has no effect where nothing looks at masks (objective.masked, or holes that are given)")

    @property
    def sets(self) -> tuple[DataConfig, ...]:
        """The training set, and the one that is held out."""
        return tuple(data for data in (self.config.data, self.config.validation.data) if data is not None)

    @property
    def latents(self) -> bool:
        """Whether batches hold moments instead of pictures."""
        return bool(self.config.data.cached)

    @property
    def autoencoder(self) -> bool:
        """Whether the autoencoder is what is trained."""
        return "vae" in self.config.train

    @functools.cached_property
    def dtype(self) -> str:
        """What networks compute in."""
        return self.config.dtype or default_dtype(jax.default_backend())

    @functools.cached_property
    def frozen_dtype(self) -> str:
        """What fixed parameters are held in."""
        return self.config.frozen_dtype or self.dtype

    @functools.cached_property
    def optimizer(self) -> optax.GradientTransformation:
        """The run's optimiser."""
        return make_optimizer(self.config.optim)

    @property
    def frozen_parts(self) -> tuple[str, ...]:
        """The model's parts that a step needs and does not change."""
        parts = ["unet"] if all(data.cached for data in self.sets) else ["unet", "vae"]
        parts += ["text"] if "ids" in (self.text, self.held_out) else []
        kind = kind_of(self.model)
        if kind in conditioning.NEEDS:
            parts.append(conditioning.NEEDS[kind])
        if kind == "unclip" and self.model.noise_stats is not None:
            parts.append("noise_stats")
        return () if self.autoencoder else tuple(part for part in parts if part not in self.config.train)

    def _denoising(self, empty: np.ndarray) -> Denoising:
        condition = conditioning.CONDITIONS[kind_of(self.model)]
        return Denoising(
            self.model, self.config.objective, empty, condition, jnp.dtype(self.dtype), self.config.remat
        )  # fmt: skip

    def loss(self, empty: np.ndarray, axis: str | None = None) -> Loss:
        """Returns what is minimised; `empty` are the tokens or the context of the empty caption."""
        if self.autoencoder:
            return adversarial_loss(
                self.model.vae, self.config.autoencoder, dtype=jnp.dtype(self.dtype), axis=axis
            )  # fmt: skip
        return diffusion_loss(self._denoising(empty))

    def losses(self, empty: np.ndarray) -> validation.Losses:
        """Returns what a held-out set is measured by."""
        if self.autoencoder:
            return validation.plain_losses(self.loss(empty))
        return validation.denoising_losses(self._denoising(empty), self.config.validation.timesteps)

    @property
    def numbers(self) -> StepNumbers:
        """What the compiled step takes as arguments: 0 for what there is none of."""
        c = self.config
        guard = np.float32(c.guard.spike or 0.0), np.int32(c.guard.after)
        return StepNumbers(OptimNumbers.of(c.optim), np.float32(c.ema.decay or 0.0), *guard)

    def step(self, empty: np.ndarray, place_ema: Any = None) -> TrainStep:
        """Returns the step, not compiled."""
        c = self.config
        axis = "data" if c.parallel.mode == "pmap" else None
        return make_train_step(
            self.loss(empty, axis), self.optimizer, c.ema.decay, accumulate=c.accumulate, guard=c.guard, axis=axis,
            place_ema=place_ema, rate=lambda numbers, updates: learning_rate(c.optim, numbers)(updates),
        )  # fmt: skip

    def create(self, params: Params, key: Key | None = None) -> TrainState:
        """Returns the state before the first step, of the trained parameters; the key is the seed's by default."""
        seed = self.config.seed if key is None else key
        return TrainState.create(params, self.optimizer, seed, ema=self.config.ema.decay is not None)

    @functools.cached_property
    def shapes(self) -> tuple[TrainState, Params]:
        """The shapes of the state and of the fixed parameters."""
        whole = param_shapes(self.model)
        if self.autoencoder:
            trained, frozen = _adversarial_shapes(self.config.autoencoder, whole["vae"])
        else:
            trained = {part: whole[part] for part in self.config.train}
            frozen = {part: whole[part] for part in self.frozen_parts}
        held = jnp.dtype(self.frozen_dtype)
        frozen = jax.tree.map(lambda leaf: Shape(leaf.shape, held), frozen)
        return jax.eval_shape(self.create, trained), frozen

    def batch_shapes(self, examples: int | None = None) -> dict[str, Shape]:
        """Returns shapes of a batch, or of so many examples of it, at the size of the training set's squares."""
        b, model = examples or self.config.batch_size, self.model
        side = model.image_size if self.config.data.side is None else self.config.data.side
        shapes = {"image": Shape((b, side, side, 3), jnp.uint8)}
        if self.latents:
            small = side // model.vae.factor
            shapes = {"moments": Shape((b, small, small, 2 * model.vae.latent_channels), jnp.float16)}
        if self.config.data.masks:
            shapes["mask"] = Shape((b, side, side), jnp.uint8)
        if not self.autoencoder:
            shapes["ids"] = Shape((b, model.text.max_length), jnp.int32)
            if self.text == "context":
                shapes["context"] = Shape((b, model.text.max_length, model.text.width), jnp.float16)
                del shapes["ids"]
        return shapes

    def empty_shape(self) -> np.ndarray:
        """Returns something of the shape of what the empty caption is, where its values do not matter."""
        text = self.model.text
        return np.zeros(text.max_length if self.text == "ids" else (text.max_length, text.width), np.int32)

    def flops(self) -> flops.Flops:
        """Returns the floating-point operations of a step."""
        state, frozen = self.shapes
        plain = dataclasses.replace(self, config=dataclasses.replace(self.config, parallel=ParallelConfig()))
        return flops.count(plain.step(self.empty_shape()), state, frozen, self.batch_shapes())


def _adversarial_shapes(objective: AutoencoderObjective, vae: Any) -> tuple[Any, Any]:
    """Returns shapes of what `adversarial_params` gives."""
    image, key = Shape((1, SMALLEST, SMALLEST, 3), jnp.float32), jax.random.key(0)
    trained, frozen = {"vae": vae}, {}
    if objective.disc_factor:
        trained["discriminator"] = jax.eval_shape(Discriminator().init, key, image)["params"]
    if objective.perceptual_weight:
        frozen["lpips"] = jax.eval_shape(LPIPS().init, key, image, image)["params"]
    return trained, frozen
