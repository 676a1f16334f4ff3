"""Reads an autoencoder from a separate file, for a model."""

import math
import re
from typing import Any

import numpy as np

from sdjax.config import ConfigError, VAEConfig
from sdjax.convert.checkpoint import Checkpoint, CheckpointLike, open_checkpoint
from sdjax.convert.containers.lazy import LazyTensor
from sdjax.convert.describe.other_kinds import kind_of_component, kind_of_folder, kind_of_tensors
from sdjax.convert.describe.vae_config import vae_from_diffusers
from sdjax.convert.parts.lone import part_leaves, place_of
from sdjax.convert.parts.taesd import both_halves, holds_taesd


def autoencoder(
    source: CheckpointLike, config: VAEConfig, dtype: np.dtype | None
) -> tuple[VAEConfig, dict[str, LazyTensor], tuple[str, ...]]:
    """Returns an autoencoder for a model from another file: description, parameters by path, notices.

    The file is a whole model of any layout, or an autoencoder alone, also a TAESD. Raises CheckpointError, also for one
    of another model's latents.
    """
    checkpoint = open_checkpoint(source)
    if holds_taesd(checkpoint.tensors):
        if (config.factor, config.latent_channels) != (8, 4):
            raise checkpoint.error(
                "it is a TAESD, whose latents have 4 channels and an eighth of a picture's side, not as this model's"
            )
        return both_halves(source, dtype)
    place = place_of(checkpoint, "vae")
    if config.kind == "tiny":  # the model's own; the usual one has another description
        config = VAEConfig()
    _check_latents(checkpoint, config)
    return config, part_leaves(checkpoint, place, "vae", config, dtype), ()


def _check_latents(checkpoint: Checkpoint, config: VAEConfig) -> None:
    """Raises CheckpointError for an autoencoder of another model's latents, though its tensors have the same shapes."""
    wanted, channels = config.scale_factor, config.latent_channels
    for entry, shape in checkpoint.shapes.items():
        if entry.endswith("decoder.conv_in.weight") and len(shape) == 4 and shape[1] != channels:
            raise checkpoint.error(
                f"its autoencoder's latents have {shape[1]} channels (Stable Diffusion 3's and Flux's have 16), this "
                f"model's {channels}: name one of Stable Diffusion v1 or v2 (stabilityai/sd-vae-ft-mse)"
            )
    kind = kind_of_folder(checkpoint.configs) or kind_of_tensors(checkpoint.shapes)
    described = checkpoint.configs.get("vae/config.json", checkpoint.configs.get("config.json", {}))
    if other := kind_of_component(described.get("_class_name"), ("AutoencoderKL",), "autoencoder"):
        raise checkpoint.error(str(other))
    factor = described.get("scaling_factor")
    name = "" if checkpoint.path is None else checkpoint.path.name
    stated = checkpoint.metadata.get("modelspec.architecture", "")
    if kind is not None and any(model in kind.what for model in ("Stable Diffusion XL", "Stable Diffusion 3", "Flux")):
        whose = kind.what
    elif isinstance(factor, int | float) and not math.isclose(factor, wanted, rel_tol=1e-3):
        whose = f"another model, whose latents are scaled by {factor}" + (
            " (Stable Diffusion XL)" * (factor == 0.13025)
        )
    elif _XL.search(name) or _XL.search(stated):
        whose = "Stable Diffusion XL, as its name says"
    else:
        _check_fields(checkpoint, described)
        return
    raise checkpoint.error(
        f"its autoencoder is that of {whose}; this model's latents are scaled by {wanted}, and it would draw wrong "
        "colours: name one of Stable Diffusion v1 or v2 (stabilityai/sd-vae-ft-mse)"
    )


def _check_fields(checkpoint: Checkpoint, described: Any) -> None:
    if described.get("_class_name") == "AutoencoderKL":
        try:
            vae_from_diffusers(described, "its config.json")
        except ConfigError as error:
            raise checkpoint.error(str(error)) from error


_XL = re.compile(r"(?i)(sd[-_ ]?xl|stable-diffusion-xl|xl[-_ ]?vae|vae[-_ ]?xl)")
