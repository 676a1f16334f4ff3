"""Pivotal tuning: the vectors of a new word and a LoRA learn together.

    --set trainable.words.words='{"<cat>": 2}' --set trainable.words.initial='{"<cat>": "cat"}'

The captions of the pictures contain the word, such as "a photo of <cat>".
"""

import ml_collections

from . import lora


def get_config() -> ml_collections.ConfigDict:
    """Returns the configuration: a LoRA of the UNet at 1e-4, and the word's vectors at ten times that."""
    config = lora.get_config()
    words = {"kind": "textual_inversion", "words": {}, "initial": {}}
    config.trainable = {"kind": "pivotal", "words": words, "adapter": {**config.trainable, "targets": "^unet/.*attn"}}
    config.optim.part_rates = {"text": 1e-3}
    return config
