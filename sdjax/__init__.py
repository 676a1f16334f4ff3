"""Stable Diffusion v1 and v2 in JAX and Flax.

    import sdjax

    pipe = sdjax.load("v1-5-pruned-emaonly.safetensors")
    images = sdjax.text_to_image(pipe, "a photograph of an astronaut riding a horse", seed=42)

Names are imported when first used, so that `import sdjax` costs nothing and the command line answers at once.
"""

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

from sdjax._version import __version__

# In a clone, the folders convert, configs and scripts become parts of this package only when it is installed
if (Path(__file__).parents[1] / "convert").is_dir() and importlib.util.find_spec("sdjax.convert") is None:
    missing = "this clone of sdjax is not installed: run `make run`, or `pip install --editable .`, in its folder"
    if sys.argv[:1] == ["-m"]:  # `python -m sdjax`
        sys.exit(missing)
    raise ImportError(missing)

_HOME = {
    "load": "sdjax.loading.load",
    "Pipeline": "sdjax.pipeline.model",
    "Request": "sdjax.tasks.request",
    "ControlUse": "sdjax.tasks.controls",
    "ImagePrompt": "sdjax.tasks.image_prompts",
    "Reference": "sdjax.tasks.references",
    "Region": "sdjax.tasks.regions",
    "Session": "sdjax.tasks.session",
    "Step": "sdjax.tasks.session",
    "Interrupted": "sdjax.tasks.session",
    "generate": "sdjax.tasks.generate",
    "text_to_image": "sdjax.tasks.text_to_image",
    "sweep": "sdjax.tasks.sweep",
    "merge_direction": "sdjax.tasks.mixtures",
    "differentiable": "sdjax.tasks.differentiable",
    "image_to_image": "sdjax.tasks.image_to_image",
    "edit": "sdjax.tasks.edit",
    "relight": "sdjax.tasks.relight",
    "invert": "sdjax.tasks.invert",
    "two_pass": "sdjax.tasks.two_pass",
    "inpaint": "sdjax.tasks.inpaint",
    "outpaint": "sdjax.tasks.inpaint",
    "detail": "sdjax.tasks.detail",
    "depth_to_image": "sdjax.tasks.depth_to_image",
    "estimate_depth": "sdjax.tasks.depth_to_image",
    "animate": "sdjax.tasks.animate",
    "MotionUse": "sdjax.tasks.motion",
    "upscale": "sdjax.tasks.upscale",
    "make_hint": "sdjax.tasks.hints",
    "enlarge": "sdjax.tasks.enlarge",
    "latent_upscale": "sdjax.tasks.latent_upscale",
    "image_variations": "sdjax.tasks.variations",
    "prior_to_image": "sdjax.tasks.variations",
    "Prior": "sdjax.tasks.prior",
    "SafetyChecker": "sdjax.tasks.safety",
    "ImageError": "sdjax.tasks.results",
    "OutOfMemoryError": "sdjax.tasks.results",
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

_MODULES = {  # modules for users, by their short names
    "adapters": "sdjax.adapters",
    "convert": "sdjax.convert",
    "hub": "sdjax.loading.hub",
    "image": "sdjax.pictures.image",
    "movie": "sdjax.pictures.movie",
    "noise": "sdjax.noise",
    "notes": "sdjax.checks.notes",
    "samplers": "sdjax.samplers",
    "watermark": "sdjax.pictures.watermark",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    if name not in _HOME:
        from sdjax.checks.hints import unknown_name

        raise AttributeError(unknown_name(name, __all__))
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME, *_MODULES])
