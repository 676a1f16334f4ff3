"""Latent diffusion of LAION-400M. Source: CompVis/stable-diffusion, latent-diffusion/txt2img-1p4B-eval.yaml."""

import ml_collections

from . import sd1


def get_config() -> ml_collections.ConfigDict:
    """Returns v1 at 256 pixels with another text encoder: 32 layers over the tokens of bert-base-uncased."""
    config = sd1.get_config()
    config.name = "laion400m"
    config.image_size = 256
    config.unet.context_dim = 1280
    config.text.kind = "bert"
    config.text.head_dim = 64
    config.text.update(vocab_size=30522, width=1280, layers=32, heads=8, activation="gelu")
    config.text.update(bos_token_id=101, eos_token_id=102, pad_token_id=0)  # [CLS], [SEP], [PAD]
    return config
