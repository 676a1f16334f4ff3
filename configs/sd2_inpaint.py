"""Stable Diffusion 2 inpainting. Source: Stability-AI/stablediffusion, v2-inpainting-inference.yaml."""

import ml_collections

from . import sd2_base


def get_config() -> ml_collections.ConfigDict:
    """Returns 2-base with five more input channels: the mask, and the latent of the masked image."""
    config = sd2_base.get_config()
    config.name = "sd2_inpaint"
    config.unet.in_channels = 9
    return config
