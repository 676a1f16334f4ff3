"""Stable Diffusion 2.0-base and 2.1-base. Source: Stability-AI/stablediffusion, v2-inference.yaml."""

import ml_collections

from . import sd1


def get_config() -> ml_collections.ConfigDict:
    """Returns v1 with OpenCLIP ViT-H/14 (its last block left out), heads of 64 channels and linear projections."""
    config = sd1.get_config()
    config.name = "sd2_base"
    config.guidance_scale = 9.0
    config.unet.heads = (5, 10, 20, 0)
    config.unet.mid_heads = 20
    config.unet.context_dim = 1024
    config.unet.linear_projection = True
    config.text.update(width=1024, layers=23, heads=16, activation="gelu", pad_token_id=0)
    return config
