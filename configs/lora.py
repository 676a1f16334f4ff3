"""Trains a LoRA, for a subject or a style, on a folder of pictures with captions.

The learning rates are those that kohya's users start from: 1e-4 for the UNet, half of it for the text encoder. For a
subject with pictures of its class (DreamBooth) give two parts of data, as configs/dreambooth.py does. docs/
training-adapters.md explains the values of `trainable`.
"""

import ml_collections

from . import finetune


def get_config() -> ml_collections.ConfigDict:
    """Returns the configuration: all layers of the transformers and of the text encoder, with rank 16."""
    config = finetune.get_config()
    config.train = ("unet", "text")
    config.trainable = {
        "kind": "lora",
        "targets": "linear",
        "rank": 16,
        "alpha": None,
        "conv_rank": None,
        "conv_alpha": None,
        "ranks": (),
        "alphas": (),
        "rslora": False,
        "dora": False,
        "pissa": False,
    }
    config.data.flip = 0.0
    config.objective.dropout = 0.0
    config.optim.update(steps=2000, learning_rate=1e-4, part_rates={"text": 5e-5}, decay="cosine")
    config.optim.warmup_most = 100
    config.optim.decay_all = False
    config.ema.decay = None  # there are too few steps for an average
    config.model.copy = False  # the folder keeps only the adapter, and where the model is
    return config
