"""Stable Diffusion 2 depth. Source: Stability-AI/stablediffusion, v2-midas-inference.yaml."""

import ml_collections

from . import sd2_base


def get_config() -> ml_collections.ConfigDict:
    """Returns 2-base with one more input channel, the depth, and the network that estimates it."""
    config = sd2_base.get_config()
    config.name = "sd2_depth"
    config.unet.in_channels = 5
    config.depth = {  # MiDaS DPT-Hybrid
        "image_size": 384,
        "stem_width": 64,
        "stage_widths": (256, 512, 1024),
        "stage_depths": (3, 4, 9),
        "norm_groups": 32,
        "width": 768,
        "layers": 12,
        "heads": 12,
        "taps": (8, 11),
        "neck_widths": (768, 768),
        "features": 256,
        "norm_epsilon": 1e-6,
    }
    return config
