"""Manifests of tensors: shape, dtype and SHA-256 of each, to compare two checkpoints bit by bit."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np


def manifest(tensors: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Returns {name: {"shape", "dtype", "sha256"}} in the order of the names.

    The hash is of the elements' bytes, row-major and little-endian, so that equal tensors have equal hashes however
    they lie in their files. One tensor is looked at at a time.
    """
    table = {}
    for name in sorted(tensors):
        table[name] = manifest_row(tensors[name])
    return table


def manifest_row(array: np.ndarray) -> dict[str, Any]:
    """Returns one tensor's {"shape", "dtype", "sha256"}."""
    return {"shape": list(array.shape), "dtype": array.dtype.name, "sha256": tensor_hash(array)}


def tensor_hash(array: np.ndarray) -> str:
    """Returns the hexadecimal SHA-256 of an array's elements, row-major and little-endian."""
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).hexdigest()
