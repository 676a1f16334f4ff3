"""Writes a ControlNet as a safetensors file, in diffusers' names."""

import functools
import os
import pathlib
from collections.abc import Mapping

import jax
import numpy as np

from sdjax.convert.containers.lazy import LazyTensor
from sdjax.convert.names.control import POOLED, controlnet_table
from sdjax.convert.write.safetensors_writer import write_safetensors
from sdjax.nn.controlnet import ControlNetConfig
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
    leaves = {
        jax.tree_util.keystr(place, simple=True, separator="/"): np.asarray(leaf)
        for place, leaf in jax.tree_util.tree_leaves_with_path({"controlnet": params})
    }
    tensors = {}
    for entry in controlnet_table(config, "diffusers", "").entries:
        read = functools.partial(entry.join, [leaves[parameter.path] for parameter in entry.parameters])
        dtype = leaves[entry.parameters[0].path].dtype
        tensors[entry.name] = LazyTensor(entry.shape, dtype, read, name=entry.name)
    told = {**(metadata or {}), "format": "pt", **({POOLED: "true"} if config.pooled else {})}
    place = pathlib.Path(path)
    with new_file(place, overwrite=overwrite, what="writing the ControlNet") as partial:
        write_safetensors(partial, tensors, told, aligned=False)
