"""What is minimised: losses of (params, batch, key), each with the numbers worth logging.

An objective is made once from a description and is then a pure function, so that a training step knows nothing of it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.config import ModelConfig
from sdjax.nn import TextEncoder, UNet, latent_from_moments
from sdjax.schedule import NoiseSchedule
from sdjax.typing import Key, Moments, Params, TokenIds

Metrics = dict[str, jax.Array]
Loss = Callable[[Params, Any, Key], tuple[jax.Array, Metrics]]


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
