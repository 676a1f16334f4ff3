"""Keeps the shapes of a network's parameters from run to run: finding them traces the network, which takes a second.

They are in a small JSON file in the user's cache folder, named by the description and by sdjax's own files.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np
import platformdirs
from flax.traverse_util import flatten_dict, unflatten_dict

from sdjax._version import __version__
from sdjax.storage.files import write_file
from sdjax.storage.kept import ENVIRONMENT, Unkept, described, file_stem, sources
from sdjax.typing import Params

LARGEST = 2**24  # bytes of a file


def kept(title: str, config: object, find: Callable[[], Params]) -> Params:
    """Returns find(), the shapes of the network `title` with this description, or what an earlier process found.

    Nothing is kept with SDJAX_COMPILATION_CACHE=0, for descriptions of a user's own types, and if the folder cannot be
    written.
    """
    if os.environ.get(ENVIRONMENT, "1") == "0":
        return find()
    try:
        about = [title, described(config), sources(), __version__, jax.__version__, flax.__version__]
    except Unkept:
        return find()
    path = platformdirs.user_cache_path("sdjax") / "shapes" / f"{file_stem(about)}.json"
    found = _read(path)
    if found is None:
        found = find()
        _write(path, found)
    return found


def _read(path: Path) -> Params | None:
    try:
        if path.stat().st_size > LARGEST:
            return None
        leaves = {name: _leaf(*leaf) for name, leaf in json.loads(path.read_bytes()).items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return None
    tree: Params = unflatten_dict(leaves, sep="/")
    return tree


def _leaf(shape: Any, dtype: Any) -> jax.ShapeDtypeStruct:
    if not isinstance(shape, list) or not all(type(side) is int and side >= 0 for side in shape):
        raise ValueError("not a shape")
    return jax.ShapeDtypeStruct(tuple(shape), np.dtype(str(dtype)))


def _write(path: Path, shapes: Params) -> None:
    leaves = {name: [list(leaf.shape), leaf.dtype.name] for name, leaf in flatten_dict(shapes, sep="/").items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, json.dumps(leaves).encode(), overwrite=True, what="keeping shapes")
    except OSError:  # no space or permission: they are found again in every process
        return
