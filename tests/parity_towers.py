"""The parity kit's image towers, preparation of pictures, and noise on image embeddings."""

import jax.numpy as jnp
import numpy as np

from sdjax import convert, preprocess, unclip
from sdjax.config import VisionConfig
from sdjax.nn import VisionEncoder


def vision_config(spec):
    """Returns the image tower of a kit specification."""
    return VisionConfig(
        image_size=spec["image_size"], patch_size=spec["patch"], width=spec["width"], layers=spec["layers"],
        heads=spec["heads"], projection=spec["output_dim"], activation=spec["activation"],
    )  # fmt: skip


def vision(spec, state_dict, pixels):
    """Returns the image embedding [b, d] of prepared pixels [b, 3, size, size], by a tower of released names."""
    config, params = convert.load_vision(state_dict, vision_config(spec))
    return np.asarray(VisionEncoder(config).apply({"params": params}, jnp.moveaxis(jnp.asarray(pixels), 1, -1)))


def clip_pixels(image, dialect, size=224):
    """Returns the prepared picture [3, size, size]."""
    return np.moveaxis(preprocess.clip_pixels([image], size, dialect=dialect)[0], -1, 0)


def noise_embedding(embedding, level, noise, mean, std, max_level):
    """Returns the label [b, 2 d] of embeddings with noise on them."""
    return np.asarray(unclip.noise_embedding(embedding, level, noise, mean, std, levels=max_level))
