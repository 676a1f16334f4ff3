"""The released models, one file each, and the description of one by its name.

Every file has `get_config()`, which returns an ml_collections.ConfigDict; a variant is its parent with a few lines
changed. Source: the YAML files of CompVis/stable-diffusion and Stability-AI/stablediffusion that each file names.
"""

import functools
import importlib

from sdjax.config import ConfigError, ModelConfig

NAMES = (
    "sd1", "sd1_inpaint", "sd2_base", "sd2_v", "sd2_inpaint", "sd2_depth", "x4_upscaler", "sd2_unclip_h",
    "sd2_unclip_l", "laion400m",
)  # fmt: skip


@functools.cache
def get(name: str) -> ModelConfig:
    """Returns the description of a released model, "sd1" for example. Raises ConfigError for a name not in NAMES."""
    if name not in NAMES:
        raise ConfigError(f"a released model is one of {', '.join(NAMES)}; got {name!r}")
    return ModelConfig.from_dict(importlib.import_module(f".{name}", __name__).get_config().to_dict())
