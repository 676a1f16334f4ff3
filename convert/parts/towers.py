"""Image towers and embeddings' statistics from files of their own."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from sdjax.config import ModelConfig, VisionConfig
from sdjax.convert.containers.lazy import LazyTensor, is_floating
from sdjax.convert.describe import vision_config
from sdjax.convert.leaves import matched_leaves, refuse
from sdjax.convert.names import keys, tables
from sdjax.convert.names.matching import match
from sdjax.convert.parts.components import SMALLEST, holds_none
from sdjax.convert.sources import Source, open_source

_STATISTICS = (  # the names of mean and standard deviation, wherever they lie
    ("mean", "std"), ("data_mean", "data_std"), ("0", "1"), ("noise_augmentor.data_mean", "noise_augmentor.data_std"),
    ("image_normalizer/mean", "image_normalizer/std"), ("noise_stats/mean", "noise_stats/std"),
)  # fmt: skip


def vision_alone(vision: VisionConfig) -> ModelConfig:
    """Returns a description whose only field of meaning is its image tower."""
    unet = dataclasses.replace(SMALLEST.unet, label_dim=2 * vision.projection)
    return dataclasses.replace(SMALLEST, name="vision", unet=unet, vision=vision)


def vision_tower(
    source: Any, kind: np.dtype | None, config: VisionConfig | None = None
) -> tuple[VisionConfig, dict[str, LazyTensor]]:
    """Returns the image tower of a file or folder: a whole model's of any layout, or one that lies there alone.

    Alone are OpenAI's and OpenCLIP's own files and transformers' folders of a CLIPVisionModelWithProjection or
    CLIPModel. `config` describes it where no JSON file does. Raises CheckpointError.
    """
    source = open_source(source)
    every, ldm, folder = source.tensors.shapes, keys.LDM_PREFIXES["vision"], keys.COMPONENTS["vision"] + "/"
    places: tuple[tuple[tables.Layout, tuple[str, ...], str], ...] = (
        ("native", ("vision/",), ""), ("ldm", (f"{ldm}visual.",), ""), ("ldm", ("visual.",), ldm),
        ("diffusers", (folder,), ""), ("diffusers", ("vision_model.", "visual_projection."), folder),
    )  # fmt: skip
    found_there = (place for place in places if any(name.startswith(place[1]) for name in every))
    layout, beginnings, prefix = next(found_there, ("native", (), ""))
    if not beginnings:
        raise source.error(holds_none(source, "image tower", "OpenCLIP's or transformers'"))
    shapes = {prefix + name: shape for name, shape in every.items() if name.startswith(beginnings)}
    if config is None:
        config = _described(source, layout, prefix)
    found = match(shapes, vision_alone(config), layout, parts=("vision",))
    refuse(source, found, "the image tower's description")
    renamed = dataclasses.replace(found, names={entry: name[len(prefix) :] for entry, name in found.names.items()})
    return config, matched_leaves(source, renamed, kind)


def _described(source: Source, layout: tables.Layout, prefix: str) -> VisionConfig:
    file = "config.json" if prefix else f"{keys.COMPONENTS['vision']}/config.json"
    if layout == "diffusers" and file in source.configs:
        return vision_config.vision_from_transformers(source.configs[file], file)
    if layout == "native" and source.native is not None:
        own = ModelConfig.from_dict(source.native.get("model")).vision
        if own is not None:
            return own
    raise source.error("nothing beside its image tower says how it is built; give its description by config=")


def statistics(source: Any, size: int, kind: np.dtype | None) -> dict[str, LazyTensor]:
    """Returns mean and standard deviation of image embeddings of this length, from a file or folder that holds them.

    Such are Stability's `ViT-L-14_stats.th`, diffusers' image_normalizer folder, and whole models. Raises
    CheckpointError.
    """
    source = open_source(source)
    names = next((pair for pair in _STATISTICS if set(pair) <= set(source.tensors)), None)
    if names is None:
        raise source.error("it was given for the mean and standard deviation of image embeddings, and holds none")
    leaves = {}
    for leaf, name in zip(("mean", "std"), names):
        shape = source.tensors.shapes[name]
        if shape not in ((size,), (1, size)) or not is_floating(source.tensors.dtypes[name]):
            raise source.error(f"{name} has the shape {list(shape)}; the model's image embeddings have {size} numbers")
        read = functools.partial(_row, source.tensors, name)
        leaves[f"noise_stats/{leaf}"] = LazyTensor((1, size), source.tensors.dtypes[name], read, name=name).cast(kind)
    return leaves


def _row(tensors: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    return tensors[name].reshape(1, -1)


def no_statistics(size: int) -> dict[str, LazyTensor]:
    """Returns a mean of 0 and a standard deviation of 1: what a file that holds none stands for."""
    return {
        f"noise_stats/{leaf}": LazyTensor((1, size), np.dtype(np.float32), functools.partial(np.full, (1, size), value))
        for leaf, value in (("mean", np.float32(0)), ("std", np.float32(1)))
    }


def are_none(leaves: Mapping[str, LazyTensor]) -> bool:
    """Returns whether the statistics among a model's parameters are 0 and 1, for which single files hold none."""
    return all(bool(np.all(leaves[f"noise_stats/{leaf}"].read() == value)) for leaf, value in (("mean", 0), ("std", 1)))
