"""Writes a ControlNet as a safetensors file: whole in diffusers' names, or as a control-LoRA."""

import functools
import os
import pathlib
from collections.abc import Mapping

import jax
import numpy as np
from numpy.typing import DTypeLike

from sdjax.convert.containers.lazy import LazyTensor
from sdjax.convert.names.control import POOLED, controlnet_table
from sdjax.convert.names.naming import Layout
from sdjax.convert.write.safetensors_writer import write_safetensors
from sdjax.nn.controlnet import COPIED, ControlNetConfig, copy_encoder
from sdjax.storage.files import new_file
from sdjax.typing import Params


def write_controlnet(
    path: str | os.PathLike[str],
    config: ControlNetConfig,
    params: Params,
    *,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> None:
    """Writes a ControlNet in its parameters' types. `sdjax.convert.load_controlnet` and other tools read the file.

    Raises FileExistsError if the file exists and is not to be replaced, OSError if it cannot be written.
    """
    _write(path, config, _stored(config, params, "diffusers"), metadata, overwrite)


def write_control_lora(
    path: str | os.PathLike[str],
    config: ControlNetConfig,
    params: Params,
    unet: Params,
    *,
    rank: int,
    dtype: DTypeLike = np.float16,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> None:
    """Writes a ControlNet as a control-LoRA of a UNet: what differs from its encoder, at most of this rank.

    Weights that the UNet has too are stored as two matrices, the best of their rank by SVD, or whole where that is
    smaller. The other layers, such as the hint encoder's, are stored whole. The names are ldm's, as in Stability's
    control-LoRAs. Raises as `write_controlnet`.
    """
    whole, new = _stored(config, params, "ldm"), _new(config)
    made: dict[str, np.ndarray] = {}
    base = _stored(config, copy_encoder(config, params, unet), "ldm")
    for name, tensor in whole.items():
        change = tensor.astype(np.float32) - base[name].astype(np.float32)
        rows, columns = len(change), change.size // max(len(change), 1)
        if not change.any() and name not in new:
            continue
        if change.ndim < 2 or name in new or rank * (rows + columns) >= rows * columns:
            made[name] = tensor
            continue
        u, s, v = np.linalg.svd(change.reshape(rows, columns), full_matrices=False)
        stem, width = name.removesuffix(".weight"), (1,) * (change.ndim - 2)
        made[f"{stem}.up"] = (u[:, :rank] * s[:rank]).reshape(rows, rank, *width)
        made[f"{stem}.down"] = v[:rank].reshape(rank, *change.shape[1:])
    made = {name: tensor.astype(dtype) for name, tensor in made.items()} | {"lora_controlnet": np.zeros(1, dtype)}
    _write(path, config, made, metadata, overwrite)


def _new(config: ControlNetConfig) -> frozenset[str]:
    """Returns the names of the tensors that no UNet has."""
    return frozenset(
        entry.name for entry in controlnet_table(config, "ldm", "").entries
        if not entry.parameters[0].path.partition("/")[2].startswith(COPIED)
    )  # fmt: skip


def _stored(config: ControlNetConfig, params: Params, layout: Layout) -> dict[str, np.ndarray]:
    """Returns the tensors of a file in a layout."""
    leaves = {
        jax.tree_util.keystr(place, simple=True, separator="/"): np.asarray(leaf)
        for place, leaf in jax.tree_util.tree_leaves_with_path({"controlnet": params})
    }
    entries = controlnet_table(config, layout, "").entries
    return {entry.name: entry.join([leaves[one.path] for one in entry.parameters]) for entry in entries}


def _write(
    path: str | os.PathLike[str], config: ControlNetConfig, arrays: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] | None, overwrite: bool,
) -> None:  # fmt: skip
    tensors = {
        name: LazyTensor(array.shape, array.dtype, functools.partial(np.asarray, array), name=name)
        for name, array in arrays.items()
    }
    told = {**(metadata or {}), "format": "pt", **({POOLED: "true"} if config.pooled else {})}
    place = pathlib.Path(path)
    with new_file(place, overwrite=overwrite, what="writing the ControlNet") as partial:
        write_safetensors(partial, tensors, told, aligned=False)
