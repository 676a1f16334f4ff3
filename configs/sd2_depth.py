"""Stable Diffusion 2 depth. Source: Stability-AI/stablediffusion, v2-midas-inference.yaml."""

import ml_collections

from . import sd2_base


def get_config() -> ml_collections.ConfigDict:
    """Returns 2-base with one more input channel: the depth."""
    config = sd2_base.get_config()
    config.name = "sd2_depth"
    config.unet.in_channels = 5
    return config
