"""Stable unCLIP 2.1, CLIP ViT-L. Source: Stability-AI/stablediffusion, v2-1-stable-unclip-l-inference.yaml."""

import ml_collections

from . import sd2_v


def get_config() -> ml_collections.ConfigDict:
    """Returns 2-v conditioned on an image's embedding (768) and on that of its noise level (768)."""
    config = sd2_v.get_config()
    config.name = "sd2_unclip_l"
    config.guidance_scale = 10.0  # scripts/streamlit/stableunclip.py
    config.unet.label_dim = 1536
    config.vision = {  # OpenAI's CLIP ViT-L/14
        "image_size": 224,
        "patch_size": 14,
        "width": 1024,
        "layers": 24,
        "heads": 16,
        "projection": 768,
        "activation": "quick_gelu",
    }
    config.noise_stats = 768
    return config
