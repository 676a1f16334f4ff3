"""Stable unCLIP 2.1, OpenCLIP ViT-H. Source: Stability-AI/stablediffusion, v2-1-stable-unclip-h-inference.yaml."""

import ml_collections

from . import sd2_v


def get_config() -> ml_collections.ConfigDict:
    """Returns 2-v conditioned on an image's embedding (1024) and on that of its noise level (1024)."""
    config = sd2_v.get_config()
    config.name = "sd2_unclip_h"
    config.guidance_scale = 10.0  # scripts/streamlit/stableunclip.py
    config.unet.label_dim = 2048
    config.vision = {  # OpenCLIP ViT-H/14
        "image_size": 224,
        "patch_size": 14,
        "width": 1280,
        "layers": 32,
        "heads": 16,
        "projection": 1024,
        "activation": "gelu",
    }
    config.noise_stats = 1024
    return config
