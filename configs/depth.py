"""Turns a text-to-image model into a depth-to-image model: its first convolution is widened for the depth map.

MiDaS estimates the depth of each picture. The UNet gets one more input channel, whose weights start at 0. Source: the
model card of stable-diffusion-2-depth.
"""

import ml_collections

from . import finetune


def get_config() -> ml_collections.ConfigDict:
    """Returns the configuration. For a model with another latent `in_channels` is 1 more than the latent's channels."""
    config = finetune.get_config()
    config.model.changes = {"unet": {"in_channels": 5}}
    config.model.depth = "Intel/dpt-hybrid-midas"
    config.optim.update(steps=200_000, learning_rate=1e-4, warmup_most=1_000)
    return config
