"""What some networks take beside latent and text: the picture to inpaint, an image embedding."""

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.diffusion.unclip import embedding_mean_and_std, noise_embedding
from sdjax.nn.layers.interpolation import interpolate
from sdjax.noise.torch_cpu import TorchCPU
from sdjax.pipeline.model import Pipeline
from sdjax.purpose import UNCLIP_LEVELS
from sdjax.serve.comfy.values import Entry

GREY = (0.8223, -0.6876, 0.6364, 0.1380)  # the latent of a picture of 0 in [-1, 1], as ComfyUI has it


def concat_of(pipe: Pipeline, entry: Entry, x0: jax.Array, mask: jax.Array | None) -> jax.Array | None:
    """Returns the further channels of a network for inpainting, None for others.

    They are the mask and the picture that the conditioning holds (InpaintModelConditioning), else the latent's own;
    without a mask, all of a grey picture is painted. Raises ValueError for networks with other inputs.
    """
    unet = pipe.config.unet
    if unet.in_channels == unet.out_channels:
        return None
    b, h, w, c = x0.shape
    if unet.in_channels == 2 * c and entry.concat is not None:
        return jnp.asarray(entry.concat[0], jnp.float32)[jnp.arange(b) % len(entry.concat[0])]
    if unet.in_channels != 2 * c + 1:  # latent, mask, latent of the masked picture
        raise ValueError(f"the model {pipe.config.name} takes inputs that no node of a graph gives")
    if entry.concat is not None:
        latent, given = entry.concat
        small = jnp.asarray(interpolate(given.astype(np.float32)[..., None], (h, w), method="bilinear"))
        picture = jnp.asarray(latent, jnp.float32)
        at = jnp.arange(b)
        return jnp.concatenate([jnp.round(small[at % len(small)]), picture[at % len(picture)]], axis=-1)
    if mask is None:
        grey = jnp.broadcast_to(jnp.asarray(GREY if c == len(GREY) else np.zeros(c), jnp.float32), x0.shape)
        return jnp.concatenate([jnp.ones((b, h, w, 1)), grey], axis=-1)
    return jnp.concatenate([jnp.round(mask), x0], axis=-1)


def label_of(pipe: Pipeline, entry: Entry, b: int) -> jax.Array | None:
    """Returns the label of an unCLIP network, [b, d]: the weighted sum of the image embeddings; zeros without any.

    Source: ComfyUI's comfy/model_base.py, unclip_adm: the sum of several gets noise again, of the weaker merge level.
    """
    if entry.images and pipe.config.unet.label_dim is None:
        raise ValueError(f"the model {pipe.config.name} takes no picture: unCLIPConditioning needs an unCLIP model")
    if pipe.config.unet.label_dim is None:
        if pipe.config.unet.num_classes is not None:
            raise ValueError(f"the model {pipe.config.name} needs a noise level, which no node of a graph gives")
        return None
    size = pipe.config.unet.label_dim // 2
    if not entry.images:
        return jnp.zeros((b, pipe.config.unet.label_dim), jnp.float32)
    stats = embedding_mean_and_std(pipe.params, size)
    labels = []
    for one in entry.images:
        level = jnp.asarray([round((UNCLIP_LEVELS - 1) * one.noise)])
        noise = jnp.asarray(TorchCPU(10).randn((1, size)))
        made = noise_embedding(jnp.asarray(one.embedding).reshape(1, -1), level, noise, stats["mean"], stats["std"])
        labels.append(made * one.strength)
    if len(labels) > 1:
        summed = sum(label[:, :size] for label in labels)
        level = jnp.asarray([round((UNCLIP_LEVELS - 1) * 0.05)])
        noise = jnp.asarray(TorchCPU(10).randn((1, size)))
        labels = [noise_embedding(jnp.asarray(summed), level, noise, stats["mean"], stats["std"])]
    return jnp.repeat(jnp.asarray(labels[0]), b, axis=0)
