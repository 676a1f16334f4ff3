"""Small random models for the tests: real code, real vocabulary, narrow networks. Smooth pictures."""

import functools

import jax
import numpy as np

from sdjax import pictures
from sdjax.config import ModelConfig, TextConfig, UNetConfig, VAEConfig
from sdjax.nn import param_shapes
from sdjax.pipeline.model import Pipeline
from sdjax.prompts.tokenizer import Tokenizer

import reference

# One level only: what most of these tests cost is the compilation of this network
TINY = ModelConfig(
    name="tiny",
    unet=UNetConfig(channels=(32,), heads=(2,), mid_heads=2, transformer_depth=(1,), self_attention=(True,),
                    num_res_blocks=1, context_dim=32),
    vae=VAEConfig(channels=(32, 32, 32, 32), num_res_blocks=1),
    text=TextConfig(width=32, layers=1, heads=2),
    image_size=64,
)  # fmt: skip

# The real width of Stable Diffusion's first level: narrow convolutions hide how batch size changes a sum's order
WIDE = ModelConfig(
    name="wide",
    unet=UNetConfig(channels=(320,), heads=(8,), mid_heads=8, transformer_depth=(1,), self_attention=(True,),
                    num_res_blocks=1, context_dim=32),
    vae=VAEConfig(channels=(32, 32, 32, 32), num_res_blocks=1),
    text=TextConfig(width=32, layers=1, heads=2),
    image_size=64,
)  # fmt: skip


def random_params(config: ModelConfig) -> dict:
    """Returns parameters that keep activations near unit variance, none of them zero."""
    return fill_tree(param_shapes(config))


def fill_tree(shapes: dict) -> dict:
    """Returns such parameters of these shapes."""

    def leaf(path, shape):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        x = reference.fill(name, shape.shape)
        if name.endswith("kernel"):  # fan-in is every axis but the last in Flax's layout
            x = x * (x[:1].size / (x.size / x.shape[-1])) ** 0.5
        return x + 1 if name.endswith("scale") else x

    return jax.tree_util.tree_map_with_path(leaf, shapes)


@functools.cache
def pipeline(config: ModelConfig = TINY, dtype: str = "float32") -> Pipeline:
    """Returns a pipeline around random parameters."""
    return Pipeline(config=config, params=random_params(config), tokenizer=Tokenizer(), dtype=dtype)


def picture(height: int = 64, width: int = 64, seed: int = 0) -> np.ndarray:
    """Returns a smooth picture, uint8 [height, width, 3]."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    return pictures.resize(small, height, width, "bicubic")
