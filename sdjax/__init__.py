"""Stable Diffusion v1 and v2 in JAX and Flax.

    import sdjax

    pipe = sdjax.load("v1-5-pruned-emaonly.safetensors")
    images = sdjax.text_to_image(pipe, "a photograph of an astronaut riding a horse", seed=42)

Names are imported when first used, so that `import sdjax` costs nothing and the command line answers at once.
"""

import importlib
from typing import Any

from sdjax._version import __version__

_HOME = {
    "load": "sdjax.loading",
    "Pipeline": "sdjax.pipeline",
    "text_to_image": "sdjax.generate",
    "image_to_image": "sdjax.generate",
    "two_pass": "sdjax.generate",
    "inpaint": "sdjax.generate",
    "outpaint": "sdjax.generate",
    "depth_to_image": "sdjax.depth",
    "estimate_depth": "sdjax.depth",
    "animate": "sdjax.animation",
    "upscale": "sdjax.upscaling",
    "image_variations": "sdjax.variations",
    "prior_to_image": "sdjax.variations",
    "Prior": "sdjax.prior",
    "SafetyChecker": "sdjax.safety",
    "ImageError": "sdjax.generate",
    "OutOfMemoryError": "sdjax.generate",
    "ModelConfig": "sdjax.config",
    "UNetConfig": "sdjax.config",
    "VAEConfig": "sdjax.config",
    "TextConfig": "sdjax.config",
    "DepthConfig": "sdjax.config",
    "VisionConfig": "sdjax.config",
    "PriorConfig": "sdjax.config",
    "ScheduleConfig": "sdjax.config",
    "ConfigError": "sdjax.config",
    "NoiseSchedule": "sdjax.schedule",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        from sdjax.hints import unknown_name

        raise AttributeError(unknown_name(name, __all__))
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
