"""Nodes that mix models."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from sdjax.adapters.delta import merge
from sdjax.nn.quantised.leaf import is_quantised
from sdjax.serve.comfy.definitions import link, node, real
from sdjax.serve.comfy.host import Run
from sdjax.serve.comfy.values import Clip, Model
from sdjax.tasks.adapters import AdapterUse

TWO = link("model1", "MODEL"), link("model2", "MODEL")


def merged(of: Model | Clip) -> Mapping[str, Any]:
    """Returns the parameters of a model's UNet or of a text encoder, with its adapters merged into them."""
    part = "unet" if isinstance(of, Model) else "text"
    own = {part: of.pipe.params[part]}
    pairs = [(_of(use, part), use.strength) for use in of.adapters]
    return merge(own, pairs)[part] if of.adapters else own[part]


def _of(use: AdapterUse, part: str) -> dict[str, Any]:
    return {path: delta for path, delta in use.adapter.items() if path.startswith(part)}


def _mixed(one: Model, other: Model, mix: Callable[[str, np.ndarray, np.ndarray], np.ndarray]) -> Model:
    """Returns the first model with parameters mixed by `mix(path, first, second)` in float32."""
    if one.pipe.config.unet != other.pipe.config.unet:
        raise ValueError("models of one architecture can be merged; these have different networks")

    def leaf(path: Any, a: Any, b: Any) -> Any:
        name = "/".join(str(getattr(key, "key", key)) for key in path)
        first, second = (np.asarray(array, np.float32) for array in (a, b))
        return mix(name, first, second).astype(a.dtype)

    unet = jax.tree_util.tree_map_with_path(leaf, merged(one), merged(other), is_leaf=is_quantised)
    pipe = dataclasses.replace(one.pipe, params={**one.pipe.params, "unet": unet}, bundle=None)
    return dataclasses.replace(one, pipe=pipe, adapters=())


@node("ModelMergeSimple", "advanced/model_merging", (*TWO, real("ratio", 1.0)), ("MODEL",))
def simple(run: Run, model1: Model, model2: Model, ratio: float) -> tuple[Model]:
    """Mixes two models: `ratio` of the first, the rest of the second."""
    share = np.float32(ratio)
    return (_mixed(model1, model2, lambda _, a, b: a * share + b * (1 - share)),)


@node("ModelMergeSubtract", "advanced/model_merging", (*TWO, real("multiplier", 1.0, -10.0, 10.0)), ("MODEL",))
def subtract(run: Run, model1: Model, model2: Model, multiplier: float) -> tuple[Model]:
    """Subtracts the second model from the first, and multiplies the difference."""
    weight = np.float32(multiplier)
    return (_mixed(model1, model2, lambda _, a, b: (a - b) * weight),)


@node("ModelMergeAdd", "advanced/model_merging", TWO, ("MODEL",))
def add(run: Run, model1: Model, model2: Model) -> tuple[Model]:
    """Adds the second model, such as a difference, to the first."""
    return (_mixed(model1, model2, lambda _, a, b: a + b),)


@node(
    "ModelMergeBlocks", "advanced/model_merging", (*TWO, real("input", 1.0), real("middle", 1.0), real("out", 1.0)),
    ("MODEL",),
)  # fmt: skip
def blocks(run: Run, model1: Model, model2: Model, input: float, middle: float, out: float) -> tuple[Model]:
    """Mixes two models with a ratio for each half of the UNet and its middle; 1 is the first model."""

    def mix(path: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        if path.startswith("mid_block"):
            share = middle
        elif path.startswith(("down_blocks", "conv_in", "down")):
            share = input
        elif path.startswith(("up_blocks", "conv_out", "norm_out", "conv_norm_out", "up")):
            share = out
        else:
            share = input  # the time embedding: ComfyUI's first ratio is that of all other layers
        return np.asarray(a * np.float32(share) + b * np.float32(1 - share))

    return (_mixed(model1, model2, mix),)


@node(
    "CLIPMergeSimple", "advanced/model_merging", (link("clip1", "CLIP"), link("clip2", "CLIP"), real("ratio", 1.0)),
    ("CLIP",),
)  # fmt: skip
def text_encoders(run: Run, clip1: Clip, clip2: Clip, ratio: float) -> tuple[Clip]:
    """Mixes two text encoders: `ratio` of the first, the rest of the second."""
    if clip1.pipe.config.text != clip2.pipe.config.text:
        raise ValueError("text encoders of one architecture can be merged; these differ")
    share = np.float32(ratio)

    def leaf(a: Any, b: Any) -> Any:
        first, second = (np.asarray(array, np.float32) for array in (a, b))
        return (first * share + second * (1 - share)).astype(a.dtype)

    text = jax.tree.map(leaf, merged(clip1), merged(clip2), is_leaf=is_quantised)
    pipe = dataclasses.replace(clip1.pipe, params={**clip1.pipe.params, "text": text}, bundle=None)
    return (dataclasses.replace(clip1, pipe=pipe, adapters=()),)
