"""The configurations of the released models, one file each, and a function to get one by name.

Every file has `get_config()`, which returns an ml_collections.ConfigDict. A variant changes a few lines of its parent.
Source: the YAML files of CompVis/stable-diffusion and Stability-AI/stablediffusion that each file names.
"""

import functools
import importlib

from sdjax.config import ConfigError, ModelConfig
from sdjax.spelling import meant

NAMES = (
    "sd1", "sd1_inpaint", "sd2_base", "sd2_v", "sd2_inpaint", "sd2_depth", "x4_upscaler", "sd2_unclip_h",
    "sd2_unclip_l", "laion400m",
)  # fmt: skip


@functools.cache
def get(name: str) -> ModelConfig:
    """Returns the configuration of a released model, such as "sd1". Raises ConfigError for a name not in NAMES."""
    if name not in NAMES:
        raise ConfigError(f"a released model is one of {', '.join(NAMES)}; got {name!r}{meant(name, NAMES)}")
    return ModelConfig.from_dict(importlib.import_module(f".{name}", __name__).get_config().to_dict())
