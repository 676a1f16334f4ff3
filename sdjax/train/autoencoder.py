"""What the autoencoder is trained on: reconstruction and the divergence of its latents, and the adversarial training.

`adversarial_loss` is what CompVis trained the released autoencoders with, `autoencoder_loss` a plain one for small
models. Both decode a sample of the posterior.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from sdjax.config import VAEConfig
from sdjax.nn import AutoencoderKL, latent_from_moments
from sdjax.nn.discriminator import SMALLEST, Discriminator
from sdjax.nn.lpips import LPIPS
from sdjax.train.objectives import Loss, Metrics
from sdjax.typing import Image, Key, Moments, Params, Pixels


def kl_divergence(moments: Moments) -> jax.Array:
    """Returns KL(N(mean, exp(logvar)) || N(0, 1)) of each latent value, in nats, [b, h, w, c].

    Source: Kingma & Welling 2013 (arXiv 1312.6114), appendix B.
    """
    mean, logvar = jnp.split(moments, 2, axis=-1)
    logvar = jnp.clip(logvar, -30.0, 20.0)  # as latent_from_moments
    return 0.5 * (jnp.square(mean) + jnp.exp(logvar) - 1.0 - logvar)


def reconstruction_error(image: Image, other: Image, edge_weight: float) -> tuple[jax.Array, jax.Array]:
    """Returns the mean absolute difference of two pictures, and `edge_weight` times that of their gradients.

    The gradients are differences of neighbouring pixels along both axes; they keep outlines sharp where a mean over
    pixels, most of them background, would let them blur.
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

    def loss(params: Params, frozen: Params, batch: Any, keys: Key, step: jax.Array) -> tuple[jax.Array, Metrics]:
        params, image = params["vae"], to_float(batch["image"])
        moments = vae.apply({"params": params}, image, method="encode")
        noise = draws.normal(keys, draws.POSTERIOR, (*moments.shape[1:-1], config.latent_channels))
        latent = latent_from_moments(moments, noise, config.scale_factor)
        pixels, edges = reconstruction_error(vae.apply({"params": params}, latent, method="decode"), image, edge_weight)
        kl = kl_divergence(moments).mean()
        total = pixels + edges + kl_weight * kl
        return total, {"loss": total, "pixels": pixels, "edges": edges, "kl": kl}

    return loss


class AutoencoderBatch(NamedTuple):
    """What the adversarial training is fed: pictures, and the number of the step, from 0, once for every picture.

    So whatever cuts a batch, for devices or to accumulate gradients, cuts both.
    """

    image: Pixels
    step: Int[Array, "b"]


@dataclasses.dataclass(frozen=True)
class AutoencoderObjective:
    """The weights of an autoencoder's adversarial training; the defaults are those of CompVis's kl-f8.

    Attributes:
        kl_weight: of a picture's KL divergence, summed over its latent.
        perceptual_weight: of LPIPS, beside the difference of a pixel's value.
        pixel_loss: "l1", a value's absolute difference, or "l2", its square (Stability's ft-MSE decoders).
        edge_weight: of the differences of neighbouring pixels, see `reconstruction_error`.
        logvar: of a pixel's value. The reference has a parameter for it but gives it to no optimiser, so that it stays
            what it is at the start.
        disc_start: the step, counted from 0, from which on the discriminator learns and is heard.
        disc_weight: of its opinion, in units of the reconstruction's gradient at the decoder's last kernel.
        disc_factor: of the discriminator's loss, and of its opinion once more; 0 leaves it out altogether.
        disc_loss: "hinge" or "vanilla", the cross entropy.

    Raises ValueError for what is out of range.
    """

    kl_weight: float = 1e-6
    perceptual_weight: float = 1.0
    pixel_loss: str = "l1"
    edge_weight: float = 0.0
    logvar: float = 0.0
    disc_start: int = 50001
    disc_weight: float = 0.5
    disc_factor: float = 1.0
    disc_loss: str = "hinge"

    def __post_init__(self) -> None:
        for name, known in (("pixel_loss", PIXEL_LOSSES), ("disc_loss", DISC_LOSSES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is one of {', '.join(known)}; got {getattr(self, name)!r}")
        for name in ("kl_weight", "perceptual_weight", "edge_weight", "disc_start", "disc_weight", "disc_factor"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is 0 or more; got {getattr(self, name)}")


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


def adversarial_params(vae: Params, key: Key) -> dict[str, Any]:
    """Returns the parameters that `adversarial_loss` trains: an autoencoder's, and a new discriminator's."""
    image = jnp.zeros((1, SMALLEST, SMALLEST, 3))
    return {"vae": vae, "discriminator": Discriminator().init(key, image)["params"]}


def adversarial_loss(
    config: VAEConfig, objective: AutoencoderObjective, lpips: Params | None = None, *, dtype: Any = jnp.float32
) -> Loss:
    """Returns the loss of autoencoder and discriminator together, so that one gradient trains each on its own aim.

    A batch is an AutoencoderBatch; parameters are {"vae", "discriminator"}, see `adversarial_params`, the latter not
    needed with disc_factor 0. `lpips` are LPIPS's (`sdjax.convert.load_lpips`), which stay as they are. The networks
    run in `dtype`, what is summed and compared in float32.

    The autoencoder's terms, per picture: the negative log likelihood sum(e / exp(logvar) + logvar), e the difference of
    a pixel's value plus what LPIPS says of the whole picture; the weighted KL divergence; and from disc_start on minus
    the mean logit of the reconstruction, times disc_weight, disc_factor and the adaptive weight. The discriminator's is
    its own loss of pictures and reconstructions, which the autoencoder does not see. The reference updates the two
    alternately: its discriminator sees reconstructions by the autoencoder just updated, from another sample of the
    posterior; here both see the same one.

    The batch norms' means and the adaptive weight, a quotient of gradients, are those of the whole batch under `jit`
    over a mesh; under `pmap` they would be each device's.

    Raises ValueError if LPIPS has a weight and no parameters.

    Source: CompVis/stable-diffusion, ldm/modules/losses/contperceptual.py (T70).
    """
    o = objective
    if o.perceptual_weight and lpips is None:
        raise ValueError("the perceptual loss needs LPIPS's parameters; give them, or set perceptual_weight to 0")
    vae, discriminator, perceptual = AutoencoderKL(config, dtype), Discriminator(dtype), LPIPS(dtype)

    def likelihood(image: Image, reconstruction: Image) -> tuple[jax.Array, Metrics]:
        """Returns the negative log likelihood per picture, and its parts as means over all pixels' values."""
        difference = PIXEL_LOSSES[o.pixel_loss](image - reconstruction)
        parts = {"pixels": difference.mean()}
        error = difference
        if o.edge_weight:
            _, parts["edges"] = reconstruction_error(image, reconstruction, o.edge_weight)
            error += parts["edges"]
        if o.perceptual_weight:
            distance = perceptual.apply({"params": lpips}, image, reconstruction)
            error += o.perceptual_weight * distance[:, None, None, None]
            parts["perceptual"] = distance.mean()
        return (error / jnp.exp(o.logvar) + o.logvar).sum() / len(image), parts

    def loss(params: Params, batch: AutoencoderBatch, key: Key) -> tuple[jax.Array, Metrics]:
        image = batch.image.astype(jnp.float32) / 127.5 - 1.0
        moments = vae.apply({"params": params["vae"]}, image, method="encode")
        noise = jax.random.normal(key, (*moments.shape[:-1], config.latent_channels))
        latent = latent_from_moments(moments, noise, config.scale_factor)

        def decode(kernel: Array) -> Image:
            return vae.apply({"params": with_last_kernel(params["vae"], kernel)}, latent, method="decode")

        reconstruction, kernel_gradient = jax.vjp(decode, last_kernel(params["vae"]))
        nll, parts = likelihood(image, reconstruction)
        kl = kl_divergence(moments).sum() / len(image)
        total, metrics = nll + o.kl_weight * kl, {**parts, "nll": nll, "kl": kl}
        if o.disc_factor:
            fixed_d, fixed_x = jax.lax.stop_gradient((params["discriminator"], reconstruction))

            def generator(x: Image) -> jax.Array:
                return -discriminator.apply({"params": fixed_d}, x).mean()

            nll_gradient = jax.grad(lambda x: likelihood(image, x)[0])(fixed_x)
            weight = adaptive_weight(*kernel_gradient(nll_gradient), *kernel_gradient(jax.grad(generator)(fixed_x)))
            factor = jnp.where(batch.step.max() >= o.disc_start, o.disc_factor, 0.0)
            real, fake = (discriminator.apply({"params": params["discriminator"]}, x) for x in (image, fixed_x))
            g, d = generator(reconstruction), factor * DISC_LOSSES[o.disc_loss](real, fake)
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
