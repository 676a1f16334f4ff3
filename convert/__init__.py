"""Checkpoints: reading them as data, checking them, and turning any layout into any other without loss.

    config, params = sdjax.convert.load("v1-5-pruned-emaonly.safetensors")
    sdjax.convert.convert("model.ckpt", "model.safetensors")

A `.ckpt` file's pickle is never executed; what a file says is checked before anything is taken from it.

Names are imported when first used: a picture needs few of these modules.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sdjax.convert.adapters.embedding import LoadedEmbedding, load_embedding
    from sdjax.convert.adapters.hypernetwork import LoadedHypernetwork, load_hypernetwork
    from sdjax.convert.adapters.load import LoadedAdapter, load_adapter
    from sdjax.convert.bundle import Bundle, Report
    from sdjax.convert.containers.hashing import manifest
    from sdjax.convert.containers.reading import TensorFile, read
    from sdjax.convert.errors import CheckpointError
    from sdjax.convert.inspection import Inspection, inspect
    from sdjax.convert.merge.merging import merge_bundles, merge_models, reproduce_merge
    from sdjax.convert.merge.recipe import Settings as MergeSettings
    from sdjax.convert.model import load, load_model, parameter_counts
    from sdjax.convert.names.tables import tensor_shapes
    from sdjax.convert.parts.aesthetic import load_aesthetic
    from sdjax.convert.parts.annotators import LoadedAnnotator, load_annotator
    from sdjax.convert.parts.clip_pair import load_clip_pair, load_clip_vision
    from sdjax.convert.parts.controlnet import LoadedControlNet, load_controlnet
    from sdjax.convert.parts.depth import load_depth
    from sdjax.convert.parts.detector import LoadedDetector, load_detector
    from sdjax.convert.parts.dinov2 import load_dinov2
    from sdjax.convert.parts.esrgan import LoadedESRGAN, load_esrgan
    from sdjax.convert.parts.inception import load_inception
    from sdjax.convert.parts.ip_adapter import LoadedIPAdapter, load_ip_adapter
    from sdjax.convert.parts.latent_upscaler import LoadedLatentUpscaler, load_latent_upscaler
    from sdjax.convert.parts.motion import LoadedMotion, load_motion
    from sdjax.convert.parts.motion_lora import LoadedMotionLora, load_motion_lora, with_motion_loras
    from sdjax.convert.parts.perceptual import load_discriminator, load_lpips
    from sdjax.convert.parts.priors import load_prior
    from sdjax.convert.parts.safety import load_safety_checker
    from sdjax.convert.parts.t2i import LoadedT2I, load_t2i
    from sdjax.convert.parts.taesd import LoadedTAESD, load_taesd
    from sdjax.convert.parts.tower import load_vision
    from sdjax.convert.parts.widened import LoadedWidened, load_widened
    from sdjax.convert.write.conversion import convert, save

    Model = Bundle

_HOME = {  # the names of each module
    "adapters.embedding": ("LoadedEmbedding", "load_embedding"),
    "adapters.hypernetwork": ("LoadedHypernetwork", "load_hypernetwork"),
    "adapters.load": ("LoadedAdapter", "load_adapter"),
    "bundle": ("Bundle", "Report"),
    "containers.hashing": ("manifest",),
    "containers.reading": ("TensorFile", "read"),
    "errors": ("CheckpointError",),
    "inspection": ("Inspection", "inspect"),
    "merge.merging": ("merge_bundles", "merge_models", "reproduce_merge"),
    "merge.recipe": ("Settings",),
    "model": ("load", "load_model", "parameter_counts"),
    "names.tables": ("tensor_shapes",),
    "parts.aesthetic": ("load_aesthetic",),
    "parts.annotators": ("LoadedAnnotator", "load_annotator"),
    "parts.clip_pair": ("load_clip_pair", "load_clip_vision"),
    "parts.controlnet": ("LoadedControlNet", "load_controlnet"),
    "parts.depth": ("load_depth",),
    "parts.detector": ("LoadedDetector", "load_detector"),
    "parts.dinov2": ("load_dinov2",),
    "parts.esrgan": ("LoadedESRGAN", "load_esrgan"),
    "parts.inception": ("load_inception",),
    "parts.ip_adapter": ("LoadedIPAdapter", "load_ip_adapter"),
    "parts.latent_upscaler": ("LoadedLatentUpscaler", "load_latent_upscaler"),
    "parts.motion": ("LoadedMotion", "load_motion"),
    "parts.motion_lora": ("LoadedMotionLora", "load_motion_lora", "with_motion_loras"),
    "parts.perceptual": ("load_discriminator", "load_lpips"),
    "parts.priors": ("load_prior",),
    "parts.safety": ("load_safety_checker",),
    "parts.t2i": ("LoadedT2I", "load_t2i"),
    "parts.taesd": ("LoadedTAESD", "load_taesd"),
    "parts.tower": ("load_vision",),
    "parts.widened": ("LoadedWidened", "load_widened"),
    "write.conversion": ("convert", "save"),
}
_RENAMED = {"MergeSettings": "Settings", "Model": "Bundle"}  # Model: the name that Bundle had first

__all__ = [
    "Bundle",
    "CheckpointError",
    "Inspection",
    "LoadedAdapter",
    "LoadedAnnotator",
    "LoadedControlNet",
    "LoadedDetector",
    "LoadedEmbedding",
    "LoadedHypernetwork",
    "LoadedT2I",
    "LoadedIPAdapter",
    "LoadedLatentUpscaler",
    "LoadedMotion",
    "LoadedMotionLora",
    "LoadedESRGAN",
    "LoadedTAESD",
    "LoadedWidened",
    "MergeSettings",
    "Model",
    "Report",
    "TensorFile",
    "convert",
    "inspect",
    "load",
    "load_adapter",
    "load_aesthetic",
    "load_annotator",
    "load_clip_pair",
    "load_clip_vision",
    "load_controlnet",
    "load_depth",
    "load_detector",
    "load_dinov2",
    "load_discriminator",
    "load_embedding",
    "load_esrgan",
    "load_hypernetwork",
    "load_inception",
    "load_ip_adapter",
    "load_latent_upscaler",
    "load_lpips",
    "load_model",
    "load_motion",
    "load_motion_lora",
    "load_prior",
    "load_safety_checker",
    "load_t2i",
    "load_taesd",
    "load_vision",
    "load_widened",
    "manifest",
    "merge_bundles",
    "merge_models",
    "parameter_counts",
    "read",
    "reproduce_merge",
    "save",
    "tensor_shapes",
    "with_motion_loras",
]


def __getattr__(name: str) -> Any:
    own = _RENAMED.get(name, name)
    for module, names in _HOME.items():
        if own in names:
            value = getattr(importlib.import_module(f"{__name__}.{module}"), own)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
