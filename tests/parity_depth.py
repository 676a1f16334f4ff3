"""The parity kit's depth network, its preparation, and LAION-400M's text encoder."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from sdjax import convert
from sdjax.config import ModelConfig, TextConfig, UNetConfig, VAEConfig
from sdjax.nn import DepthEstimator, TextEncoder
from sdjax.tasks.depth_to_image import prepare_depth as prepare


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


def bert(spec, state_dict, ids):
    """Returns the encoded text [b, n, d] of token ids, by a text encoder of released names."""
    text = TextConfig(
        kind="bert", vocab_size=spec["vocab_size"], width=spec["n_embed"], layers=spec["n_layer"], heads=spec["heads"],
        head_dim=spec["dim_head"], max_length=spec["max_seq_len"], activation="gelu", bos_token_id=101,
        eos_token_id=102, pad_token_id=0,
    )  # fmt: skip
    unet = UNetConfig(
        channels=(32,), num_res_blocks=1, heads=(0,), mid_heads=1, transformer_depth=(1,), self_attention=(True,),
        context_dim=text.width,
    )  # fmt: skip
    config = ModelConfig("laion", unet=unet, vae=VAEConfig(channels=(32,), num_res_blocks=1), text=text)
    shapes = convert.tensor_shapes(config, "ldm")  # of the parts that the kit leaves out
    tensors = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()} | state_dict
    _, params = convert.load(tensors, config=config)
    return np.asarray(TextEncoder(text).apply({"params": params["text"]}, ids))
