"""Teaches a model a new word: only its vectors in the text encoder learn. Source: Gal et al. 2022 (arXiv 2208.01618).

    --set trainable.words='{"<cat>": 2}' --set trainable.initial='{"<cat>": "cat"}'

The captions of the pictures contain the word, such as "a photo of <cat>".
"""

import ml_collections

from . import finetune


def get_config() -> ml_collections.ConfigDict:
    """Returns the configuration, with the rate of diffusers' script at a batch of 4."""
    config = finetune.get_config()
    config.train = ("text",)
    config.trainable = {"kind": "textual_inversion", "words": {}, "initial": {}}
    config.data.flip = 0.0
    config.objective.dropout = 0.0
    config.optim.update(steps=3000, learning_rate=2e-3, warmup=0)
    config.ema.decay = None
    config.model.copy = False
    return config
