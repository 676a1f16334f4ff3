"""Turns a text-to-image model into an inpainting model: its first convolution is widened, and it sees random holes.

The UNet gets five more input channels, the mask and the masked picture. Their weights are 0 at the start.
Source: the model cards of stable-diffusion-inpainting and stable-diffusion-2-inpainting.
"""

import ml_collections

from . import finetune


def get_config() -> ml_collections.ConfigDict:
    """Returns the configuration. For a model with another latent `in_channels` is 1 + twice the latent's channels."""
    config = finetune.get_config()
    config.model.changes = {"unet": {"in_channels": 9}}
    config.objective.update(dropout=0.1, holes="random", whole_holes=0.25)
    config.optim.update(steps=100_000, learning_rate=1e-4, warmup_most=1_000)
    return config
