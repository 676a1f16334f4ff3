"""The networks, as pure Flax linen modules; parameter names mirror diffusers' and transformers'."""

from sdjax.nn.clip import TextEncoder
from sdjax.nn.clip_vision import VisionEncoder
from sdjax.nn.depth.dpt import DepthEstimator
from sdjax.nn.parts import init_params, param_counts, param_shapes
from sdjax.nn.unet import UNet
from sdjax.nn.vae import AutoencoderKL, latent_from_moments

__all__ = [
    "AutoencoderKL",
    "DepthEstimator",
    "TextEncoder",
    "UNet",
    "VisionEncoder",
    "init_params",
    "latent_from_moments",
    "param_counts",
    "param_shapes",
]
