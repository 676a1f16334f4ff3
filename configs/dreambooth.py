"""DreamBooth: teaches a model a subject from a few pictures, while it keeps its knowledge of the class.

Half of the pictures show the subject, with one caption that has a rare word. The other half show the class; make them
first with the model itself: `sdjax txt2img --prompt "a photo of a dog"`. Source: Ruiz et al. 2022 (arXiv 2208.12242);
the numbers of steps and rates are its authors' for Stable Diffusion.
"""

import ml_collections

from . import finetune


def get_config() -> ml_collections.ConfigDict:
    """Returns the configuration for the folders `subject` and `class`; UNet and text encoder both learn."""
    config = finetune.get_config()
    config.train = ("unet", "text")
    config.data.parts = (
        {"source": {"folder": "subject", "default": "a photo of sks dog"}, "weight": 1.0, "loss_weight": 1.0},
        {"source": {"folder": "class", "default": "a photo of a dog"}, "weight": 1.0, "loss_weight": 1.0},
    )
    config.data.buckets = False
    config.data.flip = 0.0
    config.batch_size = 2
    config.objective.dropout = 0.0
    config.optim.update(steps=800, learning_rate=2e-6, warmup=0)
    config.ema.decay = None  # there are too few steps for an average
    config.checkpoint.minutes = 60.0
    return config
