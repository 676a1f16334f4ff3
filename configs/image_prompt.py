"""Trains an IP-Adapter on a folder of pictures with captions: the model learns to follow a picture beside a prompt.

The values are those of IP-Adapter's tutorial_train.py: AdamW at 1e-4 with a constant rate and weight decay 0.01. Of the
captions 5 % are dropped, and of the pictures too. docs/training-image-prompts.md explains it.
"""

import ml_collections

from . import finetune


def get_config() -> ml_collections.ConfigDict:
    """Returns the configuration: a plain IP-Adapter of 4 tokens. `trainable.encoder` names the image encoder."""
    config = finetune.get_config()
    config.trainable = {"kind": "image_prompt", "encoder": ml_collections.config_dict.placeholder(str), "tokens": 4}
    config.objective.dropout = 0.05
    config.optim.update(steps=20000, learning_rate=1e-4, weight_decay=0.01, decay="constant")
    config.ema.decay = None
    config.model.copy = False  # the folder keeps only the adapter, and where the model is
    return config
