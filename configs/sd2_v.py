"""Stable Diffusion 2.0-v and 2.1-v, 768 x 768. Source: Stability-AI/stablediffusion, v2-inference-v.yaml."""

import ml_collections

from . import sd2_base


def get_config() -> ml_collections.ConfigDict:
    """Returns 2-base predicting v, at 768 pixels."""
    config = sd2_base.get_config()
    config.name = "sd2_v"
    config.image_size = 768
    config.schedule.prediction = "v"
    return config
