"""Stable Diffusion v1.5 inpainting. Source: runwayml/stable-diffusion, v1-inpainting-inference.yaml."""

import ml_collections

from . import sd1


def get_config() -> ml_collections.ConfigDict:
    """Returns v1 with five more input channels: the mask, and the latent of the masked image."""
    config = sd1.get_config()
    config.name = "sd1_inpaint"
    config.unet.in_channels = 9
    return config
