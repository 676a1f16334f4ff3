"""Stable unCLIP 2.1, CLIP ViT-L. Source: Stability-AI/stablediffusion, v2-1-stable-unclip-l-inference.yaml."""

import ml_collections

from . import sd2_v


def get_config() -> ml_collections.ConfigDict:
    """Returns 2-v told an image's embedding (768) and its noise level's (768)."""
    config = sd2_v.get_config()
    config.name = "sd2_unclip_l"
    config.unet.label_dim = 1536
    return config
