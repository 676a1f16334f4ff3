"""Losses of denoising networks: functions of (whole, average, batch, keys, step) that also return numbers to log.

An objective is made once from a configuration. Its loss is a pure function, so that the training step does not depend
on the objective. `whole` are all parameters, `average` those of the moving average. A batch is a dict of arrays whose
first axis is the example. `keys` [b] has one key an example, and `step` is the number of steps before. A loss is a mean
over examples, so a batch can be processed in parts.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from sdjax.adapters.ip_adapter import ImagePromptArrays, ImagePrompts
from sdjax.adapters.patch import patched
from sdjax.checks.effects import needs
from sdjax.checks.notes import note
from sdjax.config import ConfigError, ModelConfig
from sdjax.loading.trainable.control import NETWORK, ControlTraining
from sdjax.loading.trainable.image_prompt import ImagePromptTraining
from sdjax.nn import UNet
from sdjax.nn.controlnet import ControlNet, of_unet
from sdjax.pictures.image import to_float
from sdjax.purpose import KINDS, kind_of
from sdjax.schedule import NoiseSchedule
from sdjax.train.objectives import conditioning, draws, inputs
from sdjax.train.objectives.image_prompt import image_prompt
from sdjax.train.objectives.noising import step_noise, step_perturbation
from sdjax.train.objectives.objective import Batch, Loss, Losses, Metrics, Objective, RunFacts, held_out_keys
from sdjax.train.objectives.weighting import ERRORS, HUBERS, huber_deltas, timestep_weights
from sdjax.typing import Context, Keys, Latent, Params

NOTHING = conditioning.PictureConditioning()
MOST_LEVELS = 16  # of multires_noise: 2^16 is more than a latent's side


# Conditions for `needs`
BENT = (lambda o: o.loss in HUBERS, f"but with a loss that is one of {', '.join(HUBERS)}")
OFFSET = (lambda o: o.offset_noise > 0, "without offset_noise")


@dataclasses.dataclass(frozen=True)
class DiffusionObjective(Objective):
    """Settings of a denoising network's loss. Its prediction type and betas are the model's own (ScheduleConfig).

    - `loss`: "l2", "l1", or "huber", "pseudo_huber" or "smooth_l1", which are quadratic for errors below
      `huber_delta` (`weighting.ERRORS`). `huber_schedule`: how that depends on the timestep (`huber_deltas`).
    - `gamma`: of min-SNR weighting; None for no weighting. `floor`: the least weight in terms of x0 (`snr_weights`).
      `debiased`, `like_epsilon` (for models of v) and `v_like` (of epsilon): further weights (`timestep_weights`).
    - `timesteps`: (first, last + 1) of the timesteps, which are drawn uniformly; None for all.
    - `offset_noise`: the share of noise that is constant over a channel, fixed, `offset_random` or `offset_adaptive`.
      `multires_noise`: levels of coarser noise, each counting `multires_discount` times as much as the one before
      (`noising`). `perturbation`: the share of additional noise in the network's input that its target does not have;
      with `perturbation_random` a random share up to that.
    - `dropout`: the share of captions replaced by the empty one, which guidance needs. `label_dropout`: the share of
      unCLIP's labels replaced by zeros.
    - `masked`: errors count fully where the batch's mask is white, and `unmasked` times as much elsewhere.
    - `holes`: an inpainting model's holes: "random", or "given" for the batch's mask. `whole_holes`: the share of
      random holes that hide everything.

    Sources: min-SNR: Hang et al. 2023 (arXiv 2303.09556); offset noise: Guttenberg 2023
    (crosslabs.org/blog/diffusion-with-offset-noise); perturbation: Ning et al. 2023 (arXiv 2301.11706).
    """

    loss: Literal["l2", "l1", "huber", "pseudo_huber", "smooth_l1"] = "l2"
    huber_delta: float = needs(0.1, *BENT)
    huber_schedule: Literal["constant", "exponential", "snr"] = needs("constant", *BENT)
    gamma: float | None = None
    floor: float = needs(0.0, lambda o: o.gamma is not None, "without gamma")
    debiased: bool = False
    like_epsilon: bool = False
    v_like: float = 0.0
    timesteps: tuple[int, int] | None = None
    offset_noise: float = 0.0
    offset_random: bool = needs(False, *OFFSET)
    offset_adaptive: float = needs(0.0, *OFFSET)
    multires_noise: int = 0
    multires_discount: float = needs(0.3, lambda o: o.multires_noise > 0, "without multires_noise")
    perturbation: float = 0.0
    perturbation_random: bool = needs(False, lambda o: o.perturbation > 0, "without perturbation")
    dropout: float = 0.0
    label_dropout: float = 0.0
    masked: bool = False
    unmasked: float = needs(0.0, lambda o: o.masked, "without masked")
    holes: Literal["random", "given"] = "random"
    whole_holes: float = needs(0.25, lambda o: o.holes == "random", 'but with holes "random"')
    kind: Literal["denoising"] = "denoising"

    def __post_init__(self) -> None:
        if self.loss not in ERRORS:
            raise ValueError(f"the loss is one of {', '.join(ERRORS)}; got {self.loss!r}")
        if self.holes not in ("random", "given"):
            raise ValueError(f'holes are "random" or "given"; got {self.holes!r}')
        for name in ("dropout", "label_dropout", "whole_holes", "unmasked"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} lies between 0 and 1; got {getattr(self, name)}")
        if (self.gamma is not None and self.gamma <= 0) or self.huber_delta <= 0:
            raise ValueError(f"gamma and huber_delta are positive; got {self.gamma} and {self.huber_delta}")
        if not 0 <= self.floor <= (np.inf if self.gamma is None else self.gamma):
            raise ValueError(f"floor lies between 0 and gamma; got {self.floor}")
        for name in ("offset_noise", "perturbation", "v_like", "multires_noise"):
            if not 0 <= getattr(self, name) < np.inf:
                raise ValueError(f"{name} is a number from 0 on; got {getattr(self, name)}")
        if not np.isfinite(self.offset_adaptive):
            raise ValueError(f"offset_adaptive is a number; got {self.offset_adaptive}")
        if self.multires_noise > MOST_LEVELS or not 0 <= self.multires_discount <= 1:
            raise ValueError(
                f"multires_noise has at most {MOST_LEVELS} levels, and multires_discount lies between 0 and 1; got "
                f"{self.multires_noise} and {self.multires_discount}"
            )
        if self.huber_schedule not in ("constant", "exponential", "snr"):
            raise ValueError(f"huber_schedule is constant, exponential or snr; got {self.huber_schedule!r}")
        if self.huber_schedule != "constant" and self.huber_delta > 1:
            raise ValueError(f"huber_delta falls from 1, and is at most 1; got {self.huber_delta}")

    def range_of(self, schedule: NoiseSchedule) -> tuple[int, int]:
        """Returns the range of timesteps. Raises ValueError unless it is within the schedule."""
        first, last = self.timesteps or (0, schedule.num_timesteps)
        if not 0 <= first < last <= schedule.num_timesteps:
            raise ValueError(f"timesteps are a range within 0 ... {schedule.num_timesteps}; got {self.timesteps}")
        return first, last

    def check_parts(self, train: tuple[str, ...]) -> None:
        """See Objective."""
        if train == ("vae",):
            raise ValueError('`autoencoder` says how an autoencoder is trained: it goes with train = ("vae",)')
        if not train or set(train) - {"unet", "text"}:
            raise ValueError(f'train names "unet", "text" or both, or "vae" alone; got {", ".join(train) or None}')

    def check(self, facts: RunFacts) -> None:
        """See Objective."""
        kind, model = kind_of(facts.model), facts.model
        if kind not in conditioning.CONDITIONS:
            raise ConfigError(f"{model.name} takes {model.unet.in_channels} channels: it is for {KINDS[kind]}")
        if any(facts.cached) and kind != "text":
            raise ConfigError(f"a model for {KINDS[kind]} looks at pictures in training: give data.parts, not cached")
        if "text" in facts.train and facts.captions[0] == "context":
            raise ConfigError('a text encoder is trained on captions: make the cache with text "ids"')
        need = conditioning.NEEDS.get(kind)
        if need is not None and getattr(model, need) is None:
            raise ConfigError(f"this model holds no {need} network; name one by model.{need}")
        masks = self.masked or (kind == "inpainting" and self.holes == "given")
        if masks and not all(there and not cached for there, cached in zip(facts.masks, facts.cached)):
            raise ConfigError("masks are asked for, of training and validation: set data.masks of pictures to True")
        if facts.control is not None and not all(facts.hints):
            raise ConfigError('a ControlNet learns from hints: set data.hints to a preprocessor or "files"')
        if facts.control is None and any(facts.hints):
            note("data.hints has no effect unless a ControlNet is trained: leave it out")
        if facts.image_prompt is not None:
            if any(facts.cached):
                raise ConfigError("an IP-Adapter looks at pictures in training: give data.parts, not cached")
            facts.image_prompt.vision()
        self.range_of(NoiseSchedule(model.schedule))
        predicted = model.schedule.prediction
        if self.like_epsilon and predicted != "v":
            raise ConfigError(f"like_epsilon scales the error of v; {model.name} predicts {predicted}")
        if self.v_like and predicted != "epsilon":
            raise ConfigError(f"v_like adds the error of epsilon; {model.name} predicts {predicted}")
        for name, of, usual in ("label_dropout", "unclip", 0.0), ("holes", "inpainting", "random"):
            if kind != of and getattr(self, name) != usual:
                note(f"objective.{name} has no effect but for a model of {KINDS[of]}: leave it out")
        if facts.masks[0] and not masks:
            note("data.masks has no effect where nothing looks at masks (objective.masked, or holes that are given)")

    def reads(self, facts: RunFacts) -> tuple[str, ...]:
        """See Objective."""
        kind = kind_of(facts.model)
        parts = ["unet"] if all(facts.cached) else ["unet", "vae"]
        parts += ["text"] if "ids" in facts.captions else []
        if kind in conditioning.NEEDS:
            parts.append(conditioning.NEEDS[kind])
        if kind == "unclip" and facts.model.noise_stats is not None:
            parts.append("noise_stats")
        return tuple(parts)

    def make_loss(self, facts: RunFacts, empty: np.ndarray, axis: str | None = None) -> Loss:
        """See Objective."""
        return diffusion_loss(self._denoising(facts, empty))

    def make_losses(self, facts: RunFacts, empty: np.ndarray) -> Losses:
        """See Objective; here the mean error at fixed timesteps."""
        return denoising_losses(self._denoising(facts, empty), facts.timesteps)

    def _denoising(self, facts: RunFacts, empty: np.ndarray) -> "Denoising":
        condition = conditioning.CONDITIONS[kind_of(facts.model)]
        return Denoising(
            facts.model, self, empty, condition, jnp.dtype(facts.dtype), facts.remat, facts.control, facts.image_prompt
        )


def prediction_error(
    schedule: NoiseSchedule, objective: DiffusionObjective, network: Callable[[Latent, jax.Array], Latent],
    x0: Latent, noise: Latent, t: jax.Array, *, perturbation: Latent | None = None, weight: jax.Array | None = None,
) -> jax.Array:  # fmt: skip
    """Returns each example's mean error [b] in what the network predicts of (noisy x, t), not weighted by its timestep.

    `weight` [b, h, w, 1] says how much each place counts. Source: ldm/models/diffusion/ddpm.py:p_losses.
    """
    x = schedule.add_noise(x0, noise if perturbation is None else noise + perturbation, t)
    delta = jnp.asarray(huber_deltas(schedule, objective.huber_delta, objective.huber_schedule))[t, None, None, None]
    error = ERRORS[objective.loss](network(x, t) - schedule.target(x0, noise, t), delta)
    if weight is None:
        return error.mean((1, 2, 3))
    return (error.mean(-1, keepdims=True) * weight).sum((1, 2, 3)) / jnp.maximum(weight.sum((1, 2, 3)), 1e-6)


class Denoising(NamedTuple):
    """The denoising errors of a batch at given timesteps.

    `errors(whole, batch, keys)` returns a function from timesteps t [b] to each example's error [b]. Values that do not
    depend on the timesteps are computed once. A batch holds

    - `image` uint8 [b, h, w, 3], or the autoencoder's `moments` [b, h', w', 2 c];
    - `ids` [b, n], or the text encoder's `context` [b, n, d];
    - `mask` uint8 [b, h, w], 255 where it is white, if the objective uses masks;
    - `hint` uint8 [b, h, w, 3], if a ControlNet is trained.

    `whole` holds the parameters {"unet", "text", "vae", ...} that the batch needs.
    """

    config: ModelConfig
    objective: DiffusionObjective
    empty: np.ndarray  # tokens [n] of the empty caption, or its context [n, d]
    condition: conditioning.Condition = conditioning.text
    dtype: DTypeLike = jnp.float32  # what the networks compute in
    remat: str = "none"  # the UNet's
    control: ControlTraining | None = None
    image_prompt: ImagePromptTraining | None = None

    def errors(self, whole: Params, batch: Batch, keys: Keys) -> Callable[[jax.Array], jax.Array]:
        """See above."""
        config, objective, schedule = self.config, self.objective, NoiseSchedule(self.config.schedule)
        if "image" in batch:
            batch = {**batch, "image": to_float(batch["image"])}
        x0 = inputs.latents(config, whole, batch, keys, self.dtype)
        told = self.condition(config, whole, batch, keys, objective, self.dtype)
        context = inputs.contexts(
            config, whole, batch, self.dtype, keys=keys, dropout=objective.dropout, empty=self.empty
        )
        network = self.network(whole, batch, context, told)
        if self.image_prompt is not None:
            own = image_prompt(self.image_prompt, config, whole, batch["image"], keys, self.dtype)
            network = _patched(network, own)
        noise, perturbation = step_noise(objective, keys, x0), step_perturbation(objective, keys, x0)
        weight = self._places(batch["mask"], x0) if objective.masked else None
        return lambda t: prediction_error(
            schedule, objective, network, x0, noise, t, perturbation=perturbation, weight=weight
        )

    def network(
        self, whole: Params, batch: Batch, context: Context, told: conditioning.PictureConditioning = NOTHING
    ) -> Callable[[Latent, jax.Array], Latent]:
        """Returns the UNet as a function of noisy latents and timesteps [b], with the ControlNet if one is trained."""
        config, unet = self.config, UNet(self.config.unet, self.dtype, self.remat)
        net = None
        if self.control is not None:
            net = of_unet(config.unet, factor=config.vae.factor, pooled=self.control.pooled)

        def call(x: Latent, t: jax.Array) -> Latent:
            t, residuals = t.astype(jnp.float32), None
            if net is not None:
                hint = batch["hint"].astype(jnp.float32) / (255 if batch["hint"].dtype == jnp.uint8 else 1)
                control = ControlNet(net, self.dtype, self.remat).bind({"params": whole[NETWORK]})
                residuals = control(x, t, context, hint)
            x = x if told.concat is None else jnp.concatenate([x, told.concat], axis=-1)
            return unet.bind({"params": whole["unet"]})(x, t, context, told.label, residuals=residuals)

        return call

    def _places(self, mask: jax.Array, x0: Latent) -> jax.Array:
        b, h, w, _ = x0.shape
        factor = self.config.vae.factor
        white = (mask.astype(jnp.float32) / 255).reshape(b, h, factor, w, factor).mean((2, 4))
        return (self.objective.unmasked + (1 - self.objective.unmasked) * white)[..., None]


def _patched(
    network: Callable[[Latent, jax.Array], Latent], own: ImagePromptArrays
) -> Callable[[Latent, jax.Array], Latent]:
    """Returns the network, which also attends to pictures."""

    def call(x: Latent, t: jax.Array) -> Latent:
        with patched([ImagePrompts()], [None], [(own,)]):
            return network(x, t)

    return call


def diffusion_loss(denoising: Denoising) -> Loss:
    """Returns the loss of the UNet, and of the text encoder if it is trained too.

    The objective sets how timesteps are drawn and weighted. If a batch has `weight` [b], it weights the examples.
    Source: ldm/models/diffusion/ddpm.py:LatentDiffusion.p_losses, with the terms of DiffusionObjective.
    """
    objective, config = denoising.objective, denoising.config.schedule
    schedule = NoiseSchedule(config)
    timesteps = objective.range_of(schedule)
    weights = timestep_weights(schedule, objective, config.prediction)

    def loss(
        whole: Params, average: Params | None, batch: Batch, keys: Keys, step: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        t = draws.integers(keys, draws.TIMESTEP, *timesteps)
        error = denoising.errors(whole, batch, keys)(t)
        weighted = jnp.asarray(weights)[t] * error
        if "weight" in batch:
            weighted = weighted * batch["weight"]
        total = weighted.mean()
        return total, {"loss": total, "unweighted": error.mean()}

    return loss


def denoising_losses(denoising: Denoising, count: int) -> Losses:
    """Returns the mean error of a held-out batch at `count` timesteps: "t62", "t187", ...

    Timestep i of n is the middle of the i-th of n equal parts of the schedule. Nothing is dropped, offset or perturbed.
    """
    objective = dataclasses.replace(
        denoising.objective, dropout=0.0, label_dropout=0.0, offset_noise=0.0, multires_noise=0, perturbation=0.0
    )
    shown = denoising.image_prompt
    shown = None if shown is None else dataclasses.replace(shown, dropout=0.0)
    fixed = denoising._replace(objective=objective, image_prompt=shown)
    total = denoising.config.schedule.num_timesteps
    timesteps = [int((i + 0.5) * total / count) for i in range(count)]

    def losses(whole: Params, average: Params | None, batch: Batch, row: jax.Array) -> Metrics:
        error = fixed.errors(whole, batch, held_out_keys(batch, row))
        b = jax.tree.leaves(batch)[0].shape[0]
        errors = jax.lax.map(lambda t: error(jnp.broadcast_to(t, (b,))).mean(), jnp.array(timesteps))
        return {f"t{t}": errors[i] for i, t in enumerate(timesteps)}

    return losses
