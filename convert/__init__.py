"""Checkpoints: reading them as data, checking them, and turning any layout into any other without loss.

    config, params = sdjax.convert.load("v1-5-pruned-emaonly.safetensors")
    sdjax.convert.convert("model.ckpt", "model.safetensors")

A `.ckpt` file's pickle is never executed; what a file says is checked before anything is taken from it.
"""

import dataclasses
import json
import math
import os
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from sdjax.config import DepthConfig, ModelConfig, PriorConfig, VisionConfig
from sdjax.convert.bundle import Bundle, Report, bundle_of_params
from sdjax.convert.containers.casting import advice, told
from sdjax.convert.containers.hashing import manifest
from sdjax.convert.containers.lazy import float_type
from sdjax.convert.containers.reading import TensorFile, read
from sdjax.convert.errors import CheckpointError
from sdjax.convert.inspection import Inspection, inspect
from sdjax.convert.model import load_model
from sdjax.convert.names import tables
from sdjax.convert.parts.components import depth_network
from sdjax.convert.parts.towers import vision_alone, vision_tower
from sdjax.convert.write.outputs import WRITING, check_not_input, check_output, layout_of
from sdjax.convert.write.writing import save as save_model
from sdjax.convert.write.writing import written_without
from sdjax.prompts.tokenizer import Tokenizer
from sdjax.storage.files import write_file
from sdjax.typing import Params

__all__ = [
    "Bundle",
    "CheckpointError",
    "Inspection",
    "Model",
    "Report",
    "TensorFile",
    "convert",
    "inspect",
    "load",
    "load_depth",
    "load_discriminator",
    "load_lpips",
    "load_model",
    "load_prior",
    "load_safety_checker",
    "load_vision",
    "manifest",
    "parameter_counts",
    "read",
    "save",
    "tensor_shapes",
]

Model = Bundle  # the name that it had first


def load(
    source: Any,
    config: ModelConfig | str | os.PathLike[str] | None = None,
    prediction: str | None = None,
    ema: str = "auto",
    vae: Any = None,
    dtype: str | None = None,
    variant: str | None = None,
    depth: Any = None,
    vision: Any = None,
    noise_stats: Any = None,
) -> tuple[ModelConfig, Params]:
    """Returns the description and parameters {"unet", "vae", "text"} of a checkpoint, as trees of numpy arrays.

    A model that looks at depth may have its depth network too, {"depth": ...}; one that is told a picture's embedding
    its image tower, {"vision": ...}, and the embeddings' mean and standard deviation, {"noise_stats": {"mean", "std"}}.

    Args:
        source: a `.ckpt` or `.safetensors` file, a diffusers or native folder, or a mapping of names to arrays.
        config: a description, a released model's name ("sd1", see `sdjax.configs`), or an original ldm YAML file.
            None: the folder's own; a YAML beside the file; its metadata; else what the tensors' shapes show.
        prediction: "epsilon", "v" or "x0". None: what config, metadata or marker tensors say; what the family predicts;
            for 2-base and 2-v, whose tensors look alike, the network is asked.
        ema: "yes" takes the UNet's averaged weights, "no" the others, "auto" the averaged where there are some.
        vae: a file or folder to take the autoencoder from instead.
        dtype: "float32", "bfloat16" or "float16" to convert the parameters to; None keeps each as it is.
        variant: of a diffusers folder's files, "fp16" for example.
        depth: a file or folder to take the depth network from instead.
        vision: a file or folder to take the image tower from instead.
        noise_stats: a file or folder with the mean and standard deviation of image embeddings, as Stability's
            `ViT-L-14_stats.th` for unCLIP-L, whose single files hold none.

    Raises:
        CheckpointError: if it cannot be read, or is not a whole model; every missing, unknown and misshapen tensor is
            named as the file spells it. Also for tensors whose numbers `dtype` cannot hold.
        ValueError: for an argument out of range.
    """
    model = load_model(source, config, prediction, ema, vae, dtype, variant, depth=depth, vision=vision,
                       noise_stats=noise_stats)  # fmt: skip
    return model.config, _whole(model, dtype)


def _whole(model: Bundle, dtype: str | None) -> Params:
    """Returns the parameters of a model. Raises CheckpointError if the type cannot hold their numbers."""
    params = model.params
    if dtype is not None and model.losses:
        raise CheckpointError(f"{told(model.losses, dtype)}; {advice(dtype)}")
    return params


def load_depth(source: Any, dtype: str | None = None) -> tuple[DepthConfig, Params]:
    """Returns a depth network alone, description and parameters, from any file or folder that holds one.

    Raises CheckpointError as `load`, ValueError for an unknown dtype.
    """
    config, leaves = depth_network(source, float_type(dtype))
    return config.depth, _whole(Bundle(config, leaves, {}, Report("depth network", "", "", False)), dtype)["depth"]


def load_vision(
    source: Any, config: VisionConfig | None = None, dtype: str | None = None
) -> tuple[VisionConfig, Params]:
    """Returns a CLIP image tower alone, description and parameters, from any file or folder that holds one.

    `config` is needed where nothing beside the tower describes it: of OpenCLIP's file, say. Raises CheckpointError as
    `load`, ValueError for an unknown dtype.
    """
    config, leaves = vision_tower(source, float_type(dtype), config)
    return config, _whole(Bundle(vision_alone(config), leaves, {}, Report("image tower", "", "", False)), dtype)[
        "vision"
    ]


def load_prior(source: Any, dtype: str | None = None) -> tuple[PriorConfig, Params, Tokenizer]:
    """Returns a prior, description, parameters {"prior", "text"} and tokenizer, from a diffusers folder with one.

    Raises CheckpointError as `load`, ValueError for an unknown dtype.
    """
    from sdjax.convert.parts.priors import prior  # here, as reading a model needs no such networks

    return prior(source, float_type(dtype))


def load_safety_checker(source: Any, dtype: str | None = None) -> tuple[VisionConfig, Params]:
    """Returns a safety checker, description of its image tower and parameters, from any folder or file with one.

    Raises CheckpointError as `load`, ValueError for an unknown dtype.
    """
    from sdjax.convert.parts.safety import safety_checker

    return safety_checker(source, float_type(dtype))


def load_lpips(*sources: Any) -> Params:
    """Returns LPIPS's parameters, float32, from one or two files with VGG16's weights and LPIPS's own.

    They are found by their names: in torchvision's and the lpips package's files, in one of a whole LPIPS, and in an
    autoencoder's training checkpoint. Raises CheckpointError, naming what is missing, unknown or misshapen in them.
    """
    from sdjax.convert.parts.perceptual import lpips_params

    return lpips_params(*sources)


def load_discriminator(source: Any) -> Params:
    """Returns a discriminator's parameters, float32, from an autoencoder's training checkpoint or a file of its own.

    Raises CheckpointError as `load`.
    """
    from sdjax.convert.parts.perceptual import discriminator_params

    return discriminator_params(source)


def save(
    config: ModelConfig,
    params: Params,
    path: str | os.PathLike[str],
    *,
    to: str = "auto",
    tokenizer: Tokenizer | None = None,
    dtype: str | None = None,
    like: Bundle | None = None,
    lossy: bool = False,
    overwrite: bool = False,
) -> None:
    """Writes parameters in memory as `convert` would write a checkpoint's, and warns of what the layout cannot hold.

    `tokenizer` None is CLIP's own. `like` is the model that they were read from (`load_model`): its metadata, licence,
    model card and tensors beside the parameters go along, and parameters that are still the same are written in the
    type that they are stored in. `dtype` casts all.

    Raises ValueError if the parameters, the tokenizer or the name do not fit, CheckpointError and FileExistsError as
    `convert`.
    """
    layout = layout_of(path, to)
    check_output(path, overwrite, WRITING, folder=layout != "ldm")
    model = bundle_of_params(config, params, tokenizer, like).cast(dtype)
    save_model(model, path, layout, overwrite=overwrite, lossy=lossy)
    for notice in written_without(model, layout, dtype):
        warnings.warn(f"{os.fspath(path)}: {notice}", stacklevel=2)


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    to: str = "auto",
    dtype: str | None = None,
    ema: str = "auto",
    vae: Any = None,
    prediction: str | None = None,
    config: ModelConfig | str | os.PathLike[str] | None = None,
    variant: str | None = None,
    ema_names: bool = False,
    manifest: str | os.PathLike[str] | None = None,
    vocab: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    lossy: bool = False,
) -> Report:
    """Writes a checkpoint in another layout, a tensor at a time, and returns what was decided on the way.

    `to` is "native" (a folder), "diffusers" (a folder) or "ldm" (a single `.safetensors` file); "auto" means ldm for a
    name that ends in .safetensors, else native. Tensors keep their bytes unless `dtype` asks otherwise; what is no
    parameter (noise tables, OpenCLIP's last block, a safety checker) goes along, in folders as extra.safetensors.
    `ema_names` keeps both sets of the UNet's weights where there are two, and writes an ldm file's averaged ones under
    `model_ema.` names. `manifest` is a JSON file to write with the shape, dtype and SHA-256 of every tensor. `vocab` is
    the WordPiece vocabulary of a model that reads BERT's tokens, to go along. `lossy` also writes numbers that `dtype`
    cannot hold, as infinite ones and zeros. The other arguments are `load`'s.

    A single file keeps in its metadata what a folder has in files: tokenizer, licence, model card, description.

    Raises CheckpointError as `load`, for numbers that `dtype` cannot hold, and for what the layout has no place for;
    FileExistsError where something may not be replaced; ValueError for a name that says another layout.
    """
    layout = layout_of(target, to)
    check_not_input(target, source, vae)
    if manifest is not None:
        check_not_input(manifest, source, vae, target)
        if os.path.abspath(manifest) == os.path.abspath(target):
            raise ValueError(f"the manifest and the model cannot both be {os.fspath(target)!r}; give it another name")
        check_output(manifest, overwrite, "writing the manifest")
    check_output(target, overwrite, WRITING, folder=layout != "ldm")
    words = None if vocab is None else Tokenizer.from_vocabulary(vocab)
    model = load_model(source, config, prediction, ema, vae, dtype, variant, keep_both=ema_names)
    if words is not None:
        model = dataclasses.replace(model, own_tokenizer=model.tokenizer_with(words))
    table: dict[str, Any] | None = None if manifest is None else {}
    save_model(model, target, layout, ema_names=ema_names, overwrite=overwrite, manifest=table, lossy=lossy)
    if manifest is not None:
        text = json.dumps(table, indent=1, sort_keys=True) + "\n"
        write_file(manifest, text.encode(), overwrite=overwrite, what="writing the manifest")
    return dataclasses.replace(model.report, notices=(*model.report.notices, *written_without(model, layout, dtype)))


def tensor_shapes(config: ModelConfig, layout: str) -> dict[str, tuple[int, ...]]:
    """Returns the names and shapes of the parameters in a file of a layout: "native", "ldm" or "diffusers"."""
    if layout not in tables.LAYOUTS:
        raise ValueError(f"a layout is one of {', '.join(tables.LAYOUTS)}; got {layout!r}")
    return {entry.name: entry.shape for entry in tables.entries(config, layout)}


def parameter_counts(
    shapes: Mapping[str, tuple[int, ...]], config: ModelConfig | None = None, ema: str = "auto"
) -> dict[str, int]:
    """Returns {"unet": n, "vae": n, "text": n}, the parameters in use of a single file with these names and shapes.

    A depth network's are "depth": n, an image tower's "vision": n, where the file holds one.

    Allocates nothing. Raises CheckpointError as `load` would for the file.
    """
    nothing = np.float32(0)
    tensors = {name: np.broadcast_to(nothing, shape) for name, shape in shapes.items()}
    model = load_model(tensors, config, ema=ema, prediction="v")  # any: asking a network without weights is no use
    counts = dict.fromkeys(tables.parts_of(model.config), 0)
    for path, leaf in model.leaves.items():
        counts[path.partition("/")[0]] += math.prod(leaf.shape)
    counts.pop("noise_stats", None)  # measured, not learned
    return counts
