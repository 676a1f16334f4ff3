"""Trains a ControlNet on a folder of pictures with captions, and hints that are made of them or lie beside.

The values are those of ControlNet's paper and of diffusers' train_controlnet: AdamW at 1e-5 with a constant rate, half
of the captions dropped, so that the net learns to read hints without words. docs/training-controlnet.md explains it.
"""

import ml_collections

from . import finetune


def get_config() -> ml_collections.ConfigDict:
    """Returns the configuration: a ControlNet for edges (canny)."""
    config = finetune.get_config()
    config.trainable = {"kind": "controlnet", "pooled": False}
    config.data.hints = "canny"
    config.data.flip = 0.5
    config.objective.dropout = 0.5
    config.optim.update(steps=20000, learning_rate=1e-5, decay="constant")
    config.ema.decay = None
    config.model.copy = False  # the folder keeps only the ControlNet, and where the model is
    return config
