"""The parity kit's functions for TAESD and the ESRGAN family."""

import jax.numpy as jnp
import numpy as np

from sdjax import convert
from sdjax.nn.taesd import TinyAutoencoder
from sdjax.pipeline.enlarging import enlarge_image


def _taesd(net, x, method):
    loaded = convert.load_taesd(net)
    y = TinyAutoencoder(loaded.config).apply(
        {"params": loaded.params}, jnp.moveaxis(jnp.asarray(x), 1, -1), method=method
    )
    return np.asarray(jnp.moveaxis(y, -1, 1))


def taesd_encode(net, image):
    """Returns the latent [b, 4, h, w] of an image in [-1, 1]."""
    return _taesd(net, image, "encode")[:, :4]


def taesd_decode(net, latent):
    """Returns the image of a latent."""
    return _taesd(net, latent, "decode")


def esrgan(net, image):
    """Returns the picture, enlarged."""
    loaded = convert.load_esrgan(net)
    return np.stack([enlarge_image(loaded, one) for one in np.moveaxis(image, 1, -1)]).transpose(0, 3, 1, 2)
