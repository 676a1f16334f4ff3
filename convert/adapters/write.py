"""Writing adapters: a safetensors file in kohya's or diffusers' names, or a folder as PEFT writes it."""

import functools
import json
import os
import pathlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from sdjax.adapters.delta import Adapter
from sdjax.config import ModelConfig
from sdjax.convert.adapters.write_names import (
    FOLDERS,
    HEADER,
    LAYOUTS,
    diffusers_header,
    diffusers_tensors,
    kohya_tensors,
    old_diffusers_tensors,
    peft_config,
    peft_tensors,
)
from sdjax.convert.adapters.write_tensors import Module, stored_modules
from sdjax.convert.containers.casting import Loss, better_type, losses_in_words
from sdjax.convert.containers.lazy import LazyTensor, float_type
from sdjax.convert.containers.webui_hashes import webui_hashes
from sdjax.convert.describe.diffusers_config import is_v2
from sdjax.convert.errors import CheckpointError
from sdjax.convert.write.file_metadata import architecture
from sdjax.convert.write.outputs import SINGLE
from sdjax.convert.write.safetensors_writer import write_safetensors
from sdjax.storage import addresses
from sdjax.storage.files import file_ending, lexists, new_file, new_folder, taken

WRITING = "writing the adapter"
PEFT_CONFIG, PEFT_TENSORS = "adapter_config.json", "adapter_model.safetensors"


def write_adapter(
    path: str | os.PathLike[str],
    adapter: Adapter,
    config: ModelConfig,
    *,
    to: str = "kohya",
    dtype: DTypeLike | None = None,
    metadata: Mapping[str, str] | None = None,
    embeddings: Mapping[str, ArrayLike] | None = None,
    overwrite: bool = False,
) -> None:
    """Writes an adapter of a model in the names of another tool.

    Args:
        path: a `.safetensors` file; for "peft" a folder, with the folders `unet` and `text_encoder` in it if the
            adapter changes both networks.
        adapter: the changes by path, as `load_adapter` returns them.
        config: the model that the adapter is for.
        to: "kohya" holds every kind of change, with LyCORIS' suffixes. "diffusers" and "peft" hold LoRA and DoRA,
            "diffusers-old" holds LoRA without alphas: they are multiplied into the factors.
        dtype: "float32", "bfloat16" or "float16"; None keeps the type of each array.
        metadata: text by key for the header, such as kohya's `ss_` keys. What the tensors show is added if it is
            missing: the model's architecture, rank and alpha. The hashes `sshs_...` are always those of the tensors.
        embeddings: words and their rows [n, d], bundled into the file. Only kohya's names have a place for them.
        overwrite: whether to replace an adapter that is there.

    Raises:
        ValueError: for changes that do not fit the model or are not finite, and for a path of another kind.
        CheckpointError: for changes that the layout has no names for, and numbers that `dtype` cannot hold.
        FileExistsError: if something is there that may not be replaced. OSError if it cannot be written.
    """
    check_target(path, to)
    kind, modules = float_type(dtype), stored_modules(adapter, config)
    if not modules:
        raise ValueError("the adapter changes nothing, so there is nothing to write")
    if embeddings and to != "kohya":
        raise CheckpointError(f"{to} files have no place for the embeddings {', '.join(embeddings)}")
    told = {key: text for key, text in (metadata or {}).items() if key != HEADER}
    described = {**_described(modules, config), **told}
    if to == "peft":
        parts = {part: own for part in FOLDERS if (own := [module for module in modules if module.part == part])}
        with new_folder(path, functools.partial(_check_free, overwrite=overwrite), what=WRITING) as folder:
            for part, own in parts.items():
                place = folder / FOLDERS[part] if len(parts) > 1 else folder
                place.mkdir(exist_ok=True)
                text = json.dumps(peft_config(own), indent=2, sort_keys=True) + "\n"
                (place / PEFT_CONFIG).write_text(text, encoding="utf-8")
                _write(place / PEFT_TENSORS, peft_tensors(own), described, kind)
        return
    if to == "diffusers":
        tensors, described = diffusers_tensors(modules), described | diffusers_header(modules)
    elif to == "diffusers-old":
        tensors = old_diffusers_tensors(modules)
    else:
        tensors = kohya_tensors(modules) | _bundled(embeddings or {}, config)
    with new_file(path, overwrite=overwrite, what=WRITING) as partial:
        _write(partial, tensors, described, kind)


def check_target(path: str | os.PathLike[str], to: str) -> None:
    """Raises ValueError for an unknown layout, and for a path that says another kind than the layout is."""
    if to not in LAYOUTS:
        raise ValueError(f"the names of an adapter's file are one of {', '.join(LAYOUTS)}; got {to!r}")
    name = pathlib.Path(path).name
    if addresses.remote(path):
        raise ValueError(f"an adapter is written on this computer, not to {os.fspath(path)}; copy it there afterwards")
    if to == "peft" and file_ending(name) is not None:
        raise ValueError(f"PEFT's adapters are folders; got {os.fspath(path)!r}, which ends as a file does")
    if to != "peft" and (not name.lower().endswith(SINGLE) or name.lower() == SINGLE):
        raise ValueError(f"an adapter in {to} names is written as NAME{SINGLE}; got {os.fspath(path)!r}")


def _check_free(path: pathlib.Path, overwrite: bool) -> None:
    """Raises FileExistsError unless a PEFT folder can get this name."""
    if not lexists(path):
        return
    own = path.is_dir() and any((path / place / PEFT_CONFIG).is_file() for place in ("", *FOLDERS.values()))
    if not own:
        raise FileExistsError(f"{path} exists; choose another name, because it is no adapter that could be replaced")
    if not overwrite:
        raise taken(path)


def _write(
    path: pathlib.Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str], kind: np.dtype | None
) -> None:
    """Writes a safetensors file with hashes in its header. Raises CheckpointError for what `kind` cannot hold."""
    losses: dict[str, Loss] = {}
    tensors, cast = {}, {}
    for name, array in arrays.items():
        leaf = LazyTensor(array.shape, array.dtype, functools.partial(np.asarray, array), name=name).cast(kind)
        cast[name] = np.ascontiguousarray(leaf.read_noting(losses)).reshape(array.shape)
        tensors[name] = LazyTensor(array.shape, leaf.dtype, functools.partial(np.asarray, cast[name]), name=name)
    if losses and kind is not None:
        raise CheckpointError(f"{losses_in_words(losses, kind.name)}; nothing was written: {better_type(kind.name)}")
    hashes = webui_hashes(cast, metadata)
    header = {**metadata, **hashes, "format": "pt"}
    if "modelspec.hash_sha256" in header:
        header["modelspec.hash_sha256"] = f"0x{hashes['sshs_model_hash']}"
    write_safetensors(path, tensors, header, aligned=False)


def _described(modules: list[Module], config: ModelConfig) -> dict[str, str]:
    """Returns metadata that the tensors and the model show."""
    ranks = {module.rank for module in modules if module.rank is not None}
    alphas = {module.alpha for module in modules if module.alpha is not None}
    plain = all(module.is_low_rank and "dora_scale" not in module.tensors for module in modules)
    version = "sd_v2" if is_v2(config) else "sd_v1"
    predicts_v = config.schedule.prediction == "v"
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{architecture(config)}/lora",
        "ss_base_model_version": f"{version}_v" if predicts_v else version,
        "ss_v2": str(is_v2(config)),
        "ss_network_module": "networks.lora" if plain else "lycoris.kohya",
        **({"ss_network_dim": _one(ranks), "ss_network_alpha": _one(alphas)} if ranks else {}),
    }


def _one(values: set[int] | set[float]) -> str:
    """Returns the only value; kohya's word for several."""
    return f"{next(iter(values)):g}" if len(values) == 1 else "Dynamic"


def _bundled(embeddings: Mapping[str, ArrayLike], config: ModelConfig) -> dict[str, np.ndarray]:
    """Returns embeddings in the names that A1111 and OneTrainer have for those within an adapter's file."""
    tensors = {}
    for word, rows in embeddings.items():
        array = np.asarray(rows)
        if not word or "." in word or array.ndim != 2 or array.shape[1] != config.text.width:
            raise ValueError(
                f"an embedding has a word without dots and rows of {config.text.width} numbers; got {word!r} with "
                f"{list(array.shape)}"
            )
        tensors[f"bundle_emb.{word}.clip_l"] = array
    return tensors
