"""Stable Diffusion x4 upscaler. Source: Stability-AI/stablediffusion, x4-upscaling.yaml."""

import ml_collections

from . import sd2_base


def get_config() -> ml_collections.ConfigDict:
    """Returns 2-base with another UNet (inputs: the noisy small picture, its noise level as label) and an f4 VAE."""
    config = sd2_base.get_config()
    config.name = "x4_upscaler"
    config.unet.update(
        in_channels=7,
        channels=(256, 512, 512, 1024),
        heads=(0, 8, 8, 8),
        mid_heads=8,
        self_attention=(False, False, False, True),
        num_classes=1000,
    )
    config.vae.update(channels=(128, 256, 512), scale_factor=0.08333)
    config.schedule.update(beta_start=1e-4, beta_end=2e-2, prediction="v")
    return config
