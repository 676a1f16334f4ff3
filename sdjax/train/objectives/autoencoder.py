"""The autoencoder's losses: reconstruction, KL divergence of the latents, and an adversarial loss.

CompVis trained the released autoencoders with `adversarial_loss`. `autoencoder_loss` is simpler, for small models. Both
decode a sample of the posterior.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array

from sdjax import convert
from sdjax.checks.effects import needs
from sdjax.config import ConfigError, VAEConfig
from sdjax.nn import AutoencoderKL, latent_from_moments
from sdjax.nn.metrics.discriminator import Discriminator
from sdjax.nn.metrics.lpips import LPIPS
from sdjax.nn.networks import NETWORKS
from sdjax.pictures.image import to_float
from sdjax.storage.addresses import remote
from sdjax.train.objectives import draws
from sdjax.train.objectives.objective import Batch, Loss, Metrics, Objective, RunFacts
from sdjax.typing import Image, Key, Keys, Moments, Params


def kl_divergence(moments: Moments) -> jax.Array:
    """Returns KL(N(mean, exp(logvar)) || N(0, 1)) of each latent value, in nats, [b, h, w, c].

    Source: Kingma & Welling 2013 (arXiv 1312.6114), appendix B.
    """
    mean, logvar = jnp.split(moments, 2, axis=-1)
    logvar = jnp.clip(logvar, -30.0, 20.0)  # as latent_from_moments
    return 0.5 * (jnp.square(mean) + jnp.exp(logvar) - 1.0 - logvar)


def reconstruction_error(image: Image, other: Image, edge_weight: float) -> tuple[jax.Array, jax.Array]:
    """Returns the mean absolute difference of two pictures, and `edge_weight` times that of their gradients.

    The gradients are differences of neighbouring pixels along both axes. They keep outlines sharp: a mean over all
    pixels, most of them background, would let outlines blur.
    """
    error = image - other
    edges = jnp.abs(jnp.diff(error, axis=1)).mean() + jnp.abs(jnp.diff(error, axis=2)).mean()
    return jnp.abs(error).mean(), edge_weight * edges


def autoencoder_loss(config: VAEConfig, *, kl_weight: float, edge_weight: float) -> Loss:
    """Returns the autoencoder's loss: reconstruction plus `kl_weight` times the mean KL divergence of a latent value.

    A batch is {"image": uint8 [b, h, w, 3]}; parameters are {"vae"}. Source: Rombach et al. 2022 (arXiv
    2112.10752), appendix G, without its perceptual and adversarial terms.
    """
    vae = AutoencoderKL(config)

    def loss(
        whole: Params, average: Params | None, batch: Batch, keys: Keys, step: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        params, image = whole["vae"], to_float(batch["image"])
        network = vae.bind({"params": params})
        moments = network.encode(image)
        noise = draws.normal(keys, draws.POSTERIOR, (*moments.shape[1:-1], config.latent_channels))
        latent = latent_from_moments(moments, noise, config.scale_factor)
        pixels, edges = reconstruction_error(network.decode(latent), image, edge_weight)
        kl = kl_divergence(moments).mean()
        total = pixels + edges + kl_weight * kl
        return total, {"loss": total, "pixels": pixels, "edges": edges, "kl": kl}

    return loss


ALONE = "where an autoencoder is trained"
JUDGED = (lambda o: o.disc_factor > 0, "without a discriminator (disc_factor)")


@dataclasses.dataclass(frozen=True)
class AutoencoderObjective(Objective):
    """Settings of `adversarial_loss`. The defaults are those of CompVis's kl-f8.

    - `kl_weight`: the weight of a picture's KL divergence, summed over its latent.
    - `perceptual_weight`: the weight of LPIPS relative to the pixels' error. Unless it is 0, `lpips` must name the
      files with LPIPS's weights, see `convert.load_lpips`.
    - `pixel_loss`: "l1", the absolute difference, or "l2", its square, as in Stability's ft-MSE decoders.
      `edge_weight`: the weight of the differences of neighbouring pixels, see `reconstruction_error`.
    - `logvar`: a pixel's log variance. The reference calls it a parameter, but its optimisers do not train it.
    - `disc_start`: the step, counted from 0, at which the discriminator starts to learn and to count in the loss.
      `disc_weight`: the weight of its term for the autoencoder, in units of the reconstruction's gradient.
      `disc_factor` multiplies both that term and its own loss; 0 means no discriminator. `disc_loss`: "hinge" or
      "vanilla" (cross entropy). `discriminator`: a file with a trained one, see `convert.load_discriminator`.

    Raises ValueError for values out of range.
    """

    kl_weight: float = 1e-6
    perceptual_weight: float = 1.0
    lpips: tuple[str, ...] = needs((), lambda o: o.perceptual_weight > 0, "without perceptual_weight")
    pixel_loss: Literal["l1", "l2"] = "l1"
    edge_weight: float = 0.0
    logvar: float = 0.0
    disc_start: int = needs(50001, *JUDGED)
    disc_weight: float = needs(0.5, *JUDGED)
    disc_factor: float = 1.0
    disc_loss: Literal["hinge", "vanilla"] = needs("hinge", *JUDGED)
    discriminator: str | None = needs(None, *JUDGED)
    kind: Literal["autoencoder"] = "autoencoder"
    captions: ClassVar[bool] = False
    without_effect: ClassVar[Mapping[str, str]] = dict.fromkeys(("remat", "validation.timesteps"), ALONE)

    def __post_init__(self) -> None:
        for name, known in (("pixel_loss", PIXEL_LOSSES), ("disc_loss", DISC_LOSSES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is one of {', '.join(known)}; got {getattr(self, name)!r}")
        for name in ("kl_weight", "perceptual_weight", "edge_weight", "disc_start", "disc_weight", "disc_factor"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is 0 or more; got {getattr(self, name)}")

    def check_parts(self, train: tuple[str, ...]) -> None:
        """See Objective."""
        if train != ("vae",):
            raise ValueError('`autoencoder` says how an autoencoder is trained: it goes with train = ("vae",)')

    def check_files(self) -> None:
        """See Objective."""
        named = [*(self.lpips if self.perceptual_weight else ()), self.discriminator or ""]
        missing = [path for path in named if path and not remote(path) and not os.path.exists(path)]
        if missing:
            raise ValueError(f"{missing[0]}: there is no such file; autoencoder.lpips and discriminator name files")
        if self.perceptual_weight and not self.lpips:
            raise ValueError("autoencoder.lpips names the files of LPIPS, or autoencoder.perceptual_weight is 0")

    def check(self, facts: RunFacts) -> None:
        """See Objective."""
        if any(facts.cached):
            raise ConfigError("an autoencoder is trained on pictures, not on cached latents")
        if facts.model.vae.kind == "tiny":
            raise ConfigError(
                "the model's autoencoder is TAESD, which gives no distribution to train: take one with the usual "
                "autoencoder (model.vae)"
            )

    def networks(self, key: Key) -> tuple[Params, Params]:
        """Returns {"discriminator"} and {"lpips"}, each only if it has a weight."""
        learning: dict[str, Params] = {}
        fixed = {"lpips": convert.load_lpips(*self.lpips)} if self.perceptual_weight else {}
        if self.disc_factor and self.discriminator:
            learning["discriminator"] = convert.load_discriminator(self.discriminator)
        elif self.disc_factor:
            learning["discriminator"] = NETWORKS["discriminator"].init(None, key)
        return learning, fixed

    def network_shapes(self) -> tuple[Params, Params]:
        """See Objective."""
        learning = {"discriminator": NETWORKS["discriminator"].shapes()} if self.disc_factor else {}
        fixed = {"lpips": NETWORKS["lpips"].shapes()} if self.perceptual_weight else {}
        return learning, fixed

    def make_loss(self, facts: RunFacts, empty: np.ndarray, axis: str | None = None) -> Loss:
        """See Objective."""
        return adversarial_loss(facts.model.vae, self, dtype=jnp.dtype(facts.dtype), axis=axis)


def hinge_loss(real: Array, fake: Array) -> jax.Array:
    """Returns the discriminator's hinge loss of its logits. Source: Lim & Ye 2017 (arXiv 1705.02894)."""
    return 0.5 * (jax.nn.relu(1.0 - real).mean() + jax.nn.relu(1.0 + fake).mean())


def vanilla_loss(real: Array, fake: Array) -> jax.Array:
    """Returns the cross entropy of the discriminator's logits. Source: Goodfellow et al. 2014 (arXiv 1406.2661)."""
    return 0.5 * (jax.nn.softplus(-real).mean() + jax.nn.softplus(fake).mean())


PIXEL_LOSSES: dict[str, Callable[[Array], Array]] = {"l1": jnp.abs, "l2": jnp.square}
DISC_LOSSES: dict[str, Callable[[Array, Array], jax.Array]] = {"hinge": hinge_loss, "vanilla": vanilla_loss}


def adaptive_weight(nll_gradient: Array, generator_gradient: Array) -> jax.Array:
    """Returns |nll's gradient| / (|generator's gradient| + 1e-4), at most 1e4, as a constant.

    Source: Esser et al. 2020 (arXiv 2012.09841), equation 7, with the reference's 1e-4.
    """
    ratio = jnp.linalg.norm(nll_gradient) / (jnp.linalg.norm(generator_gradient) + 1e-4)
    return jax.lax.stop_gradient(jnp.clip(ratio, 0.0, 1e4))


def adversarial_loss(
    config: VAEConfig, objective: AutoencoderObjective, *, dtype: DTypeLike = jnp.float32, axis: str | None = None
) -> Loss:
    """Returns the loss of autoencoder and discriminator together. Each gets only the gradient of its own loss.

    A batch is {"image": uint8 [b, h, w, 3]}; parameters are {"vae", "discriminator", "lpips"}, the last two as
    `AutoencoderObjective.networks` returns them. The networks run in `dtype`; sums and losses are float32.

    The autoencoder's loss has three terms per picture. The first is the negative log likelihood,
    sum(e / exp(logvar) + logvar), where e is a pixel's error plus LPIPS of the whole picture. The second is the
    weighted KL divergence. The third, from `disc_start` on, is minus the mean logit of the reconstruction, times
    `disc_weight`, `disc_factor` and `adaptive_weight`. The discriminator's loss compares pictures and reconstructions
    and gives them no gradient. The reference updates the two in turn: its discriminator sees reconstructions by the
    updated autoencoder, from another sample of the posterior. Here both learn from the same reconstructions.

    Batch norms and the adaptive weight are not sums over examples. If a batch is processed in parts, each part has its
    own. If a batch is spread over devices, they cover the whole batch; `pmap` and `shard_map` need `axis` for this.

    Source: CompVis/stable-diffusion, ldm/modules/losses/contperceptual.py.
    """
    o, compare = objective, DISC_LOSSES[objective.disc_loss]
    vae, discriminator, perceptual = AutoencoderKL(config, dtype), Discriminator(dtype, axis), LPIPS(dtype)

    def likelihood(lpips: Params | None, image: Image, reconstruction: Image) -> tuple[jax.Array, Metrics]:
        """Returns the negative log likelihood of a picture, and its parts, both as means over the batch."""
        error = PIXEL_LOSSES[o.pixel_loss](image - reconstruction)
        parts = {"pixels": error.mean()}
        if o.edge_weight:
            _, parts["edges"] = reconstruction_error(image, reconstruction, o.edge_weight)
            error += parts["edges"]
        if o.perceptual_weight:
            assert lpips is not None  # read where it has a weight
            distance = perceptual.bind({"params": lpips})(image, reconstruction)
            parts["perceptual"] = distance.mean()
            error += o.perceptual_weight * distance[:, None, None, None]
        return (error / jnp.exp(o.logvar) + o.logvar).sum() / len(image), parts

    def loss(
        whole: Params, average: Params | None, batch: Batch, keys: Keys, step: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        image, lpips = to_float(batch["image"]), whole.get("lpips")
        moments = vae.bind({"params": whole["vae"]}).encode(image)
        noise = draws.normal(keys, draws.POSTERIOR, (*moments.shape[1:-1], config.latent_channels))
        latent = latent_from_moments(moments, noise, config.scale_factor)

        def decode(kernel: Array) -> Image:
            return vae.bind({"params": with_last_kernel(whole["vae"], kernel)}).decode(latent)

        reconstruction, at_kernel = jax.vjp(decode, last_kernel(whole["vae"]))
        nll, parts = likelihood(lpips, image, reconstruction)
        kl = kl_divergence(moments).sum() / len(image)
        total, metrics = nll + o.kl_weight * kl, {**parts, "nll": nll, "kl": kl}
        if o.disc_factor:
            judge, picture = jax.lax.stop_gradient((whole["discriminator"], reconstruction))
            generator = lambda x: -discriminator.bind({"params": judge})(x).mean()  # noqa: E731
            # XLA merges these two with the same gradients of the whole loss
            slopes = jax.grad(lambda x: likelihood(lpips, image, x)[0])(picture), jax.grad(generator)(picture)
            pulls = [at_kernel(slope)[0] for slope in slopes]
            weight = adaptive_weight(*(pulls if axis is None else jax.lax.pmean(pulls, axis)))
            factor = jnp.where(step >= o.disc_start, o.disc_factor, 0.0)
            real, fake = (discriminator.bind({"params": whole["discriminator"]})(x) for x in (image, picture))
            g, d = generator(reconstruction), factor * compare(real, fake)
            total += o.disc_weight * weight * factor * g + d
            metrics |= {"generator": g, "adaptive": weight, "discriminator": d}
            metrics |= {"logits_real": real.mean(), "logits_fake": fake.mean()}
        return total, {"loss": total, **metrics}

    return loss


def last_kernel(vae: Params) -> Array:
    """Returns the kernel of the decoder's last convolution."""
    return vae["decoder"]["conv_out"]["kernel"]


def with_last_kernel(vae: Params, kernel: Array) -> Params:
    """Returns the autoencoder's parameters with another kernel in the decoder's last convolution."""
    decoder = vae["decoder"]
    return {**vae, "decoder": {**decoder, "conv_out": {**decoder["conv_out"], "kernel": kernel}}}
