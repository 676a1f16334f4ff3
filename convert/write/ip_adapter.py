"""Writes an IP-Adapter as a safetensors file in the names of the released ones."""

import functools
import os
import pathlib
from collections.abc import Mapping

import jax
import numpy as np

from sdjax.convert.containers.lazy import LazyTensor
from sdjax.convert.parts.ip_adapter import ip_adapter_table
from sdjax.convert.write.safetensors_writer import write_safetensors
from sdjax.nn.ip_adapter import IPAdapterConfig
from sdjax.storage.files import new_file
from sdjax.typing import Params


def write_ip_adapter(
    path: str | os.PathLike[str],
    config: IPAdapterConfig,
    params: Params,
    *,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> None:
    """Writes an IP-Adapter in its parameters' types. `sdjax.convert.load_ip_adapter` and other tools read the file.

    Raises FileExistsError if the file exists and is not to be replaced, OSError if it cannot be written.
    """
    leaves = {
        jax.tree_util.keystr(place, simple=True, separator="/"): np.asarray(leaf)
        for place, leaf in jax.tree_util.tree_leaves_with_path({"ip_adapter": params})
    }
    tensors = {}
    for entry in ip_adapter_table(config).entries:
        array = np.asarray(entry.join([leaves[one.path] for one in entry.parameters]))
        tensors[entry.name] = LazyTensor(
            array.shape, array.dtype, functools.partial(np.asarray, array), name=entry.name
        )  # fmt: skip
    with new_file(pathlib.Path(path), overwrite=overwrite, what="writing the IP-Adapter") as partial:
        write_safetensors(partial, tensors, {**(metadata or {}), "format": "pt"}, aligned=False)
