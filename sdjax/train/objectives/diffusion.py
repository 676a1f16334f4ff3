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
import optax
from jax.typing import DTypeLike

from sdjax.checks.effects import needs
from sdjax.checks.notes import note
from sdjax.config import ConfigError, ModelConfig
from sdjax.nn import TextEncoder, UNet
from sdjax.pictures.image import to_float
from sdjax.purpose import KINDS, kind_of
from sdjax.schedule import NoiseSchedule
from sdjax.train.objectives import conditioning, draws
from sdjax.train.objectives.objective import Batch, Loss, Losses, Metrics, Objective, RunFacts, held_out_keys
from sdjax.typing import Keys, Latent, Params


@dataclasses.dataclass(frozen=True)
class DiffusionObjective(Objective):
    """Settings of a denoising network's loss. Its prediction type and betas are the model's own (ScheduleConfig).

    - `loss`: "l2", "l1" or "huber", which is quadratic up to `huber_delta`.
    - `gamma`: of min-SNR weighting; None for no weighting. `floor`: the least weight in terms of x0 (`snr_weights`).
    - `timesteps`: (first, last + 1) of the timesteps, which are drawn uniformly; None for all.
    - `offset_noise`: the share of noise that is constant over a channel. `perturbation`: the share of additional noise
      in the network's input that its target does not have.
    - `dropout`: the share of captions replaced by the empty one, which guidance needs. `label_dropout`: the share of
      unCLIP's labels replaced by zeros.
    - `masked`: errors count fully where the batch's mask is white, and `unmasked` times as much elsewhere.
    - `holes`: an inpainting model's holes: "random", or "given" for the batch's mask. `whole_holes`: the share of
      random holes that hide everything.

    Sources: min-SNR: Hang et al. 2023 (arXiv 2303.09556); offset noise: Guttenberg 2023
    (crosslabs.org/blog/diffusion-with-offset-noise); perturbation: Ning et al. 2023 (arXiv 2301.11706).
    """

    loss: Literal["l2", "l1", "huber"] = "l2"
    huber_delta: float = needs(0.1, lambda o: o.loss == "huber", 'but with loss "huber"')
    gamma: float | None = None
    floor: float = needs(0.0, lambda o: o.gamma is not None, "without gamma")
    timesteps: tuple[int, int] | None = None
    offset_noise: float = 0.0
    perturbation: float = 0.0
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
        if min(self.offset_noise, self.perturbation) < 0:
            raise ValueError("offset_noise and perturbation are not negative")

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
        self.range_of(NoiseSchedule(model.schedule))
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
        return Denoising(facts.model, self, empty, condition, jnp.dtype(facts.dtype), facts.remat)


# Of (error, huber_delta), entry by entry
ERRORS: dict[str, Callable[[jax.Array, float], jax.Array]] = {
    "l2": lambda error, delta: jnp.square(error),
    "l1": lambda error, delta: jnp.abs(error),
    "huber": lambda error, delta: optax.losses.huber_loss(error, delta=delta),
}


def snr_weights(snr: np.ndarray, gamma: float | None, prediction: str, floor: float = 0.0) -> np.ndarray:
    """Returns the loss's weight at each signal-to-noise ratio, for a squared error in what the network predicts.

    In terms of x0 the weight is min(SNR, gamma) (Hang et al. 2023, arXiv 2303.09556), and at least `floor`. A floor of
    1 is the truncated weighting of Salimans & Ho 2022 (arXiv 2202.00512) for v and x0. The floor matters at the
    noisiest timesteps. There the network sets properties such as a background's colour, which noise never hides
    completely in training, but which the sampler's pure noise does not contain. With zero terminal SNR the weight would
    be 0 there. Without `gamma` all weights are 1.
    """
    if gamma is None:
        return np.ones_like(snr)
    return np.clip(snr, floor, gamma) / {"x0": 1.0, "v": snr + 1.0, "epsilon": snr}[prediction]


def prediction_error(
    schedule: NoiseSchedule, objective: DiffusionObjective, network: Callable[[Latent, jax.Array], Latent],
    x0: Latent, noise: Latent, t: jax.Array, *, perturbation: Latent | None = None, weight: jax.Array | None = None,
) -> jax.Array:  # fmt: skip
    """Returns each example's mean error [b] in what the network predicts of (noisy x, t), not weighted by its timestep.

    `weight` [b, h, w, 1] says how much each place counts. Source: ldm/models/diffusion/ddpm.py:p_losses.
    """
    x = schedule.add_noise(x0, noise if perturbation is None else noise + perturbation, t)
    error = ERRORS[objective.loss](network(x, t) - schedule.target(x0, noise, t), objective.huber_delta)
    if weight is None:
        return error.mean((1, 2, 3))
    return (error.mean(-1, keepdims=True) * weight).sum((1, 2, 3)) / jnp.maximum(weight.sum((1, 2, 3)), 1e-6)


class Denoising(NamedTuple):
    """The denoising errors of a batch at given timesteps.

    `errors(whole, batch, keys)` returns a function from timesteps t [b] to each example's error [b]. Values that do not
    depend on the timesteps are computed once. A batch holds

    - `image` uint8 [b, h, w, 3], or the autoencoder's `moments` [b, h', w', 2 c];
    - `ids` [b, n], or the text encoder's `context` [b, n, d];
    - `mask` uint8 [b, h, w], 255 where it is white, if the objective uses masks.

    `whole` holds the parameters {"unet", "text", "vae", ...} that the batch needs.
    """

    config: ModelConfig
    objective: DiffusionObjective
    empty: np.ndarray  # tokens [n] of the empty caption, or its context [n, d]
    condition: conditioning.Condition = conditioning.text
    dtype: DTypeLike = jnp.float32  # what the networks compute in
    remat: str = "none"  # the UNet's

    def errors(self, whole: Params, batch: Batch, keys: Keys) -> Callable[[jax.Array], jax.Array]:
        """See above."""
        config, objective, schedule = self.config, self.objective, NoiseSchedule(self.config.schedule)
        if "image" in batch:
            batch = {**batch, "image": to_float(batch["image"])}
            x0 = conditioning.encode(config, whole["vae"], batch["image"], keys, draws.POSTERIOR, self.dtype)
        else:
            x0 = conditioning.from_moments(config, batch["moments"], keys, draws.POSTERIOR)
        told = self.condition(config, whole, batch, keys, objective, self.dtype)
        context = self._context(whole, batch, keys)
        unet = UNet(config.unet, self.dtype, self.remat)

        def network(x: Latent, t: jax.Array) -> Latent:
            x = x if told.concat is None else jnp.concatenate([x, told.concat], axis=-1)
            return unet.bind({"params": whole["unet"]})(x, t.astype(jnp.float32), context, told.label)

        noise, perturbation = draws.normal(keys, draws.NOISE, x0.shape[1:]), None
        if objective.offset_noise:
            noise += objective.offset_noise * draws.normal(keys, draws.OFFSET, (1, 1, x0.shape[-1]))
        if objective.perturbation:
            perturbation = objective.perturbation * draws.normal(keys, draws.PERTURBATION, x0.shape[1:])
        weight = self._places(batch["mask"], x0) if objective.masked else None
        return lambda t: prediction_error(
            schedule, objective, network, x0, noise, t, perturbation=perturbation, weight=weight
        )

    def _context(self, whole: Params, batch: Batch, keys: Keys) -> jax.Array:
        dropout = self.objective.dropout
        if "context" in batch:
            context = batch["context"].astype(jnp.float32)
            return draws.replaced(keys, draws.CAPTION, dropout, context, jnp.asarray(self.empty, jnp.float32))
        ids = batch["ids"].astype(jnp.int32)
        ids = draws.replaced(keys, draws.CAPTION, dropout, ids, jnp.asarray(self.empty, jnp.int32))
        return TextEncoder(self.config.text, self.dtype).bind({"params": whole["text"]})(ids)

    def _places(self, mask: jax.Array, x0: Latent) -> jax.Array:
        b, h, w, _ = x0.shape
        factor = self.config.vae.factor
        white = (mask.astype(jnp.float32) / 255).reshape(b, h, factor, w, factor).mean((2, 4))
        return (self.objective.unmasked + (1 - self.objective.unmasked) * white)[..., None]


def diffusion_loss(denoising: Denoising) -> Loss:
    """Returns the loss of the UNet, and of the text encoder if it is trained too.

    The objective sets how timesteps are drawn and weighted. If a batch has `weight` [b], it weights the examples.
    Source: ldm/models/diffusion/ddpm.py:LatentDiffusion.p_losses, with the terms of DiffusionObjective.
    """
    objective, config = denoising.objective, denoising.config.schedule
    schedule = NoiseSchedule(config)
    timesteps = objective.range_of(schedule)
    a = schedule.alphas_cumprod
    weights = snr_weights(a / (1 - a), objective.gamma, config.prediction, objective.floor).astype(np.float32)

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
        denoising.objective, dropout=0.0, label_dropout=0.0, offset_noise=0.0, perturbation=0.0
    )
    fixed = denoising._replace(objective=objective)
    total = denoising.config.schedule.num_timesteps
    timesteps = [int((i + 0.5) * total / count) for i in range(count)]

    def losses(whole: Params, average: Params | None, batch: Batch, row: jax.Array) -> Metrics:
        error = fixed.errors(whole, batch, held_out_keys(batch, row))
        b = jax.tree.leaves(batch)[0].shape[0]
        errors = jax.lax.map(lambda t: error(jnp.broadcast_to(t, (b,))).mean(), jnp.array(timesteps))
        return {f"t{t}": errors[i] for i, t in enumerate(timesteps)}

    return losses
