"""The metadata that a written file has."""

import dataclasses
from typing import Any

from sdjax import configs
from sdjax.config import ModelConfig
from sdjax.convert.bundle import Bundle
from sdjax.convert.describe import diffusers_config
from sdjax.convert.names import tables

_ARCHITECTURES = {
    "sd1": "stable-diffusion-v1", "sd1_inpaint": "stable-diffusion-v1-inpainting",
    "sd2_base": "stable-diffusion-v2-512", "sd2_v": "stable-diffusion-v2-768-v",
    "sd2_inpaint": "stable-diffusion-v2-inpainting", "sd2_depth": "stable-diffusion-v2-depth",
    "sd2_unclip_l": "stable-diffusion-v2-unclip-l", "sd2_unclip_h": "stable-diffusion-v2-unclip-h",
    "x4_upscaler": "stable-diffusion-x4-upscaler",
}  # fmt: skip
_IMPLEMENTATIONS = {
    False: "https://github.com/CompVis/stable-diffusion", True: "https://github.com/Stability-AI/stablediffusion",
}  # fmt: skip
STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}


def architecture(config: ModelConfig) -> str:
    """Returns the model specification's name of an architecture."""
    return _ARCHITECTURES.get(config.name, "stable-diffusion-custom")


def file_metadata(model: Bundle) -> dict[str, str]:
    """Returns the metadata with the model specification's keys added, and what it says of prediction true."""
    config, metadata = model.config, dict(model.metadata)
    kept = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": architecture(config),
        "modelspec.implementation": _IMPLEMENTATIONS[diffusers_config.is_v2(config)],
        "modelspec.title": config.name,
        "modelspec.resolution": f"{config.image_size}x{config.image_size}",
    }
    for key, value in kept.items():
        metadata.setdefault(key, value)
    word = config.schedule.prediction
    metadata["modelspec.prediction_type"] = {"epsilon": "epsilon", "v": "v", "x0": "sample"}[word]
    if "modelspec.predict_key" in metadata:
        metadata["modelspec.predict_key"] = word
    if "ss_v_parameterization" in metadata:
        metadata["ss_v_parameterization"] = str(word == "v")
    metadata.setdefault("format", "pt")
    return metadata


def component_metadata(model: Bundle, component: str) -> dict[str, str]:
    """Returns the metadata of a diffusers folder's component: the UNet's file has what is the whole model's."""
    own = {"format": "pt"}
    for key, value in file_metadata(model).items():
        owner, slash, name = key.partition("/")
        if slash and owner == component:
            own[name] = value
        elif component == "unet" and not (slash and owner in STEMS):
            own.setdefault(key, value)
    return own


def is_released(config: ModelConfig) -> bool:
    """Returns whether a description is a released model's, of whose optional parts any may be missing."""
    if config.name not in configs.NAMES:
        return False
    known = configs.get(config.name)
    absent: dict[str, Any] = {part: None for part in tables.OPTIONAL if getattr(config, part) is None}  # the file shows
    return config == dataclasses.replace(known, **absent)
