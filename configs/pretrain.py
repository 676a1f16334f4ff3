"""Trains the UNet of a released model from scratch, like Stable Diffusion v1: 2048 pictures a step at rate 1e-4.

Source: CompVis/stable-diffusion, configs/stable-diffusion/v1-inference.yaml, and its model card's hyperparameters.
"""

import ml_collections

from . import finetune


def get_config() -> ml_collections.ConfigDict:
    """Returns the configuration. `model.path` gives autoencoder and text encoder; only the UNet starts untrained."""
    config = finetune.get_config()
    config.model.fresh = ("unet",)
    config.data.parts = (
        {"source": {"tars": "data/{00000..00099}.tar"}, "where": "aesthetic > 5 and min(width, height) >= 512"},
    )
    config.data.buckets = False
    config.batch_size = 2048
    config.accumulate = 2
    config.optim.update(steps=225_000, learning_rate=1e-4, warmup_most=10_000)
    config.dtype = "bfloat16"
    config.remat = "products"
    config.checkpoint.update(steps=5_000, keep_every=50_000)
    return config
