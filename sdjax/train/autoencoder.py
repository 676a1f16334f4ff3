"""What the autoencoder is trained on: reconstruction and the divergence of its latents."""

import jax
import jax.numpy as jnp

from sdjax.config import VAEConfig
from sdjax.nn import AutoencoderKL, latent_from_moments
from sdjax.train.objectives import Loss, Metrics
from sdjax.typing import Image, Key, Moments, Params


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

    A batch is uint8 pictures [b, h, w, 3]; parameters are the autoencoder's. Source: Rombach et al. 2022 (arXiv
    2112.10752), appendix G, without its perceptual and adversarial terms.
    """
    vae = AutoencoderKL(config)

    def loss(params: Params, images: jax.Array, key: Key) -> tuple[jax.Array, Metrics]:
        image = images.astype(jnp.float32) / 127.5 - 1.0
        moments = vae.apply({"params": params}, image, method="encode")
        noise = jax.random.normal(key, (*moments.shape[:-1], config.latent_channels))
        latent = latent_from_moments(moments, noise, config.scale_factor)
        pixels, edges = reconstruction_error(vae.apply({"params": params}, latent, method="decode"), image, edge_weight)
        kl = kl_divergence(moments).mean()
        total = pixels + edges + kl_weight * kl
        return total, {"loss": total, "pixels": pixels, "edges": edges, "kl": kl}

    return loss
