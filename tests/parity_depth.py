"""The parity kit's depth network, its preparation, and LAION-400M's text encoder."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from sdjax import convert
from sdjax.depth import prepare_depth as prepare
from sdjax.nn import DepthEstimator


@functools.lru_cache(maxsize=1)
def _network(config):
    return jax.jit(lambda params, image: DepthEstimator(config).apply({"params": params}, image))


def depth(state_dict, image):
    """Returns the depth [b, h, w] of an image [b, 3, h, w] in [-1, 1], by a network of released names."""
    config, params = convert.load_depth(state_dict)
    return np.asarray(_network(config)(params, jnp.moveaxis(jnp.asarray(image), 1, -1)))[..., 0]


def prepare_depth(depth, size):
    """Returns the depth [b, 1, *size] as the UNet sees it."""
    return np.moveaxis(prepare(np.moveaxis(depth, 1, -1), tuple(size)), -1, 1)
