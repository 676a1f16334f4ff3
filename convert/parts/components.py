"""Parts of a model from files of their own: an autoencoder, a depth network."""

import dataclasses
import math
import re
from typing import Any

import numpy as np

from sdjax.config import ConfigError, DepthConfig, ModelConfig, TextConfig, UNetConfig, VAEConfig
from sdjax.convert.containers.file_kinds import kind_of_component, kind_of_folder, kind_of_tensors
from sdjax.convert.containers.lazy import LazyTensor
from sdjax.convert.describe import dpt_config
from sdjax.convert.describe.diffusers_config import vae_from_diffusers
from sdjax.convert.leaves import matched_leaves, refuse
from sdjax.convert.names import keys, tables
from sdjax.convert.names.matching import match
from sdjax.convert.sources import Source, open_source

SMALLEST = ModelConfig(  # for the parts that a file of one part does not hold
    name="depth",
    unet=UNetConfig(channels=(32,), num_res_blocks=1, heads=(0,), mid_heads=1, transformer_depth=(1,),
                    self_attention=(True,), context_dim=64),
    vae=VAEConfig(channels=(32,), num_res_blocks=1),
    text=TextConfig(width=64, layers=1, heads=1),
)  # fmt: skip


def vae_leaves(vae: Any, config: ModelConfig, kind: np.dtype | None) -> dict[str, LazyTensor]:
    """Returns the autoencoder of another file: a whole model's of any layout, or one that lies there alone."""
    source = open_source(vae)
    every, shapes = source.tensors.shapes, {}
    names = list(every)
    if any(name.startswith(keys.LDM_PREFIXES["vae"]) for name in names):
        layout, before, prefix = "ldm", keys.LDM_PREFIXES["vae"], ""
    elif any(name.startswith(("encoder.down.", "decoder.up.")) for name in names):
        layout, before, prefix = "ldm", "", keys.LDM_PREFIXES["vae"]
    elif any(name.startswith(("encoder.down_blocks.", "decoder.up_blocks.")) for name in names):
        layout, before, prefix = "diffusers", "", "vae/"
    elif any(name.startswith("vae/") for name in names):
        layout, before, prefix = source.layout, "vae/", ""
    else:
        raise source.error(holds_none(source, "autoencoder", "ldm's or diffusers'"))
    _check_vae(source, config)
    parts = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.") if not before else (before,)
    for name in names:
        if name.startswith(parts):
            shapes[prefix + name] = every[name]
    found = match(shapes, config, layout, parts=("vae",))
    refuse(source, found, "the model")
    renamed = dataclasses.replace(found, names={entry: name[len(prefix) :] for entry, name in found.names.items()})
    return matched_leaves(source, renamed, kind)


def holds_none(source: Source, part: str, layouts: str) -> str:
    """Returns the sentence for a file that was given for a part of a model and has no such part."""
    kind = kind_of_folder(source.configs) or kind_of_tensors(source.tensors.shapes)
    known = "" if kind is None else f" (it is {kind.what})"
    return f"it was given for its {part}, and holds none in {layouts} layout{known}: name a file or folder with one"


def _check_vae(source: Source, config: ModelConfig) -> None:
    """Raises CheckpointError for an autoencoder of another model's latents, though its tensors have the same shapes."""
    wanted, channels = config.vae.scale_factor, config.vae.latent_channels
    for entry, shape in source.tensors.shapes.items():
        if entry.endswith("decoder.conv_in.weight") and len(shape) == 4 and shape[1] != channels:
            raise source.error(
                f"its autoencoder's latents have {shape[1]} channels (Stable Diffusion 3's and Flux's have 16), this "
                f"model's {channels}: name one of Stable Diffusion v1 or v2 (stabilityai/sd-vae-ft-mse)"
            )
    kind = kind_of_folder(source.configs) or kind_of_tensors(source.tensors.shapes)
    described = source.configs.get("vae/config.json", source.configs.get("config.json", {}))
    if other := kind_of_component(described.get("_class_name"), ("AutoencoderKL",), "autoencoder"):
        raise source.error(str(other))
    factor = described.get("scaling_factor")
    name = "" if source.path is None else source.path.name
    stated = source.metadata.get("modelspec.architecture", "")
    if kind is not None and any(model in kind.what for model in ("Stable Diffusion XL", "Stable Diffusion 3", "Flux")):
        whose = kind.what
    elif isinstance(factor, int | float) and not math.isclose(factor, wanted, rel_tol=1e-3):
        whose = f"another model, whose latents are scaled by {factor}" + (
            " (Stable Diffusion XL)" * (factor == 0.13025)
        )
    elif _XL.search(name) or _XL.search(stated):
        whose = "Stable Diffusion XL, as its name says"
    else:
        _check_fields(source, described)
        return
    raise source.error(
        f"its autoencoder is that of {whose}; this model's latents are scaled by {wanted}, and it would draw wrong "
        "colours: name one of Stable Diffusion v1 or v2 (stabilityai/sd-vae-ft-mse)"
    )


def _check_fields(source: Source, described: Any) -> None:
    if described.get("_class_name") == "AutoencoderKL":
        try:
            vae_from_diffusers(described, "its config.json")
        except ConfigError as error:
            raise source.error(str(error)) from error


_XL = re.compile(r"(?i)(sd[-_ ]?xl|stable-diffusion-xl|xl[-_ ]?vae|vae[-_ ]?xl)")


def depth_network(source: Any, kind: np.dtype | None) -> tuple[ModelConfig, dict[str, LazyTensor]]:
    """Returns the depth network of a file or folder: a whole model's of any layout, or one that lies there alone.

    Alone are MiDaS's own dpt_hybrid file and a folder of transformers' DPTForDepthEstimation. Its description comes as
    `depth` of a model's whose other fields mean nothing. Raises CheckpointError.
    """
    source = open_source(source)
    every, ldm, folder = source.tensors.shapes, keys.LDM_PREFIXES["depth"], keys.COMPONENTS["depth"] + "/"
    places: tuple[tuple[tables.Layout, tuple[str, ...], str], ...] = (
        ("native", ("depth/",), ""), ("ldm", (ldm,), ""), ("ldm", ("pretrained.", "scratch."), ldm),
        ("diffusers", (folder,), ""), ("diffusers", ("dpt.", "neck.", "head."), folder),
    )  # fmt: skip
    found_there = (place for place in places if any(name.startswith(place[1]) for name in every))
    layout, beginnings, prefix = next(found_there, ("native", (), ""))
    if not beginnings:
        raise source.error(holds_none(source, "depth network", "MiDaS's or transformers'"))
    shapes = {prefix + name: shape for name, shape in every.items() if name.startswith(beginnings)}
    config: DepthConfig | None = DepthConfig()
    if layout == "native" and source.native is not None:
        config = ModelConfig.from_dict(source.native.get("model")).depth
    elif layout == "diffusers":
        file = source.configs.get("config.json" if prefix else f"{folder}config.json", {})
        config = dpt_config.depth_from_transformers(file)
    if config is None:
        raise source.error("it was given for its depth network, which is not DPT-Hybrid, the one that sdjax has")
    alone = dataclasses.replace(SMALLEST, depth=config)
    found = match(shapes, alone, layout, parts=("depth",))
    refuse(source, found, "the depth network")
    renamed = dataclasses.replace(found, names={entry: name[len(prefix) :] for entry, name in found.names.items()})
    return alone, matched_leaves(source, renamed, kind)
