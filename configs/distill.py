"""Distils a text-to-image model into one of few steps, by latent consistency on pictures with captions.

Afterwards it draws in 1 to 8 steps with the sampler LCM and guidance scale 1. Source: Luo et al. 2023 (arXiv
2310.04378); `sdjax/train/objectives/consistency.py` explains the values, docs/few-steps.md shows them in use.
"""

import ml_collections

from . import finetune


def get_config() -> ml_collections.ConfigDict:
    """Returns the configuration. The authors trained for 32,000 steps of 72 pictures from 8e-6 on."""
    config = finetune.get_config()
    config.objective = {
        "kind": "consistency",
        "steps": 50,
        "scales": (5.0, 15.0),
        "phases": None,
        "target": "average",
        "loss": "huber",
        "huber_delta": 0.001,
    }
    config.optim.update(steps=4000, learning_rate=1e-5, warmup=0)
    config.ema.decay = 0.95
    return config
