"""What is minimised: losses of (params, batch, key), each with the numbers worth logging.

An objective is made once from a description and is then a pure function, so that a training step knows nothing of it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.config import ModelConfig, VAEConfig
from sdjax.nn import AutoencoderKL, TextEncoder, UNet, latent_from_moments
from sdjax.schedule import NoiseSchedule
from sdjax.typing import Image, Key, Moments, Params, TokenIds

Metrics = dict[str, jax.Array]
Loss = Callable[[Params, Any, Key], tuple[jax.Array, Metrics]]


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


class LatentBatch(NamedTuple):
    """What the denoising network is trained on: moments as the autoencoder gives them, and the captions' tokens."""

    moments: Moments
    ids: TokenIds


@dataclasses.dataclass(frozen=True)
class DiffusionObjective:
    """`gamma` of min-SNR weighting; `dropout`, the share of captions replaced by an empty one, which guidance needs;
    `offset_noise`, the share of a noise that is the same all over a channel.
    """

    gamma: float = 5.0
    dropout: float = 0.1
    offset_noise: float = 0.0


def snr_weights(snr: np.ndarray, gamma: float, prediction: str) -> np.ndarray:
    """Returns the loss's weight at each signal-to-noise ratio, for a squared error in what the network predicts.

    In terms of x0 the weight is min(SNR, gamma), after Hang et al. 2023 (arXiv 2303.09556). For v and x0 it is also at
    least 1, the truncated weighting of Salimans & Ho 2022 (arXiv 2202.00512): where hardly anything but noise is left
    the network sets what the noise never hides in training and the sampler starts without, such as a background's
    colour; with zero terminal SNR the weight would vanish there altogether.
    """
    if prediction == "epsilon":
        return np.minimum(snr, gamma) / snr
    clipped = np.clip(snr, 1.0, gamma)
    return clipped if prediction == "x0" else clipped / (snr + 1.0)


def diffusion_loss(config: ModelConfig, objective: DiffusionObjective, empty: np.ndarray) -> Loss:
    """Returns the loss of UNet and text encoder together; parameters are {"unet", "text"}, a batch is a LatentBatch.

    `empty` are the tokens of the empty caption. Every entry draws its timestep, noise, posterior sample and whether
    its caption is dropped. Source: ldm/models/diffusion/ddpm.py:LatentDiffusion.p_losses; offset noise after
    Guttenberg 2023 (crosslabs.org/blog/diffusion-with-offset-noise).
    """
    schedule, unet, text = NoiseSchedule(config.schedule), UNet(config.unet), TextEncoder(config.text)
    a = schedule.alphas_cumprod
    weights = snr_weights(a / (1 - a), objective.gamma, config.schedule.prediction).astype(np.float32)
    empty = jnp.asarray(empty, jnp.int32)

    def loss(params: Params, batch: LatentBatch, key: Key) -> tuple[jax.Array, Metrics]:
        keys = jax.random.split(key, 5)
        b, h, w, c = batch.moments.shape
        shape = (b, h, w, c // 2)
        moments = batch.moments.astype(jnp.float32)
        x0 = latent_from_moments(moments, jax.random.normal(keys[0], shape), config.vae.scale_factor)
        noise = jax.random.normal(keys[1], shape)
        if objective.offset_noise:
            noise += objective.offset_noise * jax.random.normal(keys[2], (b, 1, 1, c // 2))
        t = jax.random.randint(keys[3], (b,), 0, schedule.num_timesteps)
        dropped = jax.random.bernoulli(keys[4], objective.dropout, (b, 1))
        ids = jnp.where(dropped, empty, batch.ids.astype(jnp.int32))

        context = text.apply({"params": params["text"]}, ids)
        x = schedule.add_noise(x0, noise, t)
        out = unet.apply({"params": params["unet"]}, x, t.astype(jnp.float32), context)
        error = jnp.square(out - schedule.target(x0, noise, t)).mean((1, 2, 3))
        total = (jnp.asarray(weights)[t] * error).mean()
        return total, {"loss": total, "unweighted": error.mean()}

    return loss
