"""The mean and standard deviation of image embeddings, by which unCLIP scales them, from files of their own."""

import dataclasses
import functools
from collections.abc import Mapping

import numpy as np

from sdjax.convert.checkpoint import CheckpointLike, open_checkpoint
from sdjax.convert.containers.lazy import LazyTensor, is_floating

_NAMES = (  # of mean and standard deviation, wherever they lie
    ("mean", "std"), ("data_mean", "data_std"), ("0", "1"), ("noise_augmentor.data_mean", "noise_augmentor.data_std"),
    ("image_normalizer/mean", "image_normalizer/std"), ("noise_stats/mean", "noise_stats/std"),
)  # fmt: skip
_UNIT = {"noise_stats/mean": np.float32(0), "noise_stats/std": np.float32(1)}


def embedding_statistics(source: CheckpointLike, size: int, dtype: np.dtype | None) -> dict[str, LazyTensor]:
    """Returns mean and standard deviation of image embeddings of this length, from a file or folder that holds them.

    Such are Stability's `ViT-L-14_stats.th`, diffusers' image_normalizer folder, and whole models. Raises
    CheckpointError.
    """
    checkpoint = open_checkpoint(source)
    names = next((pair for pair in _NAMES if set(pair) <= set(checkpoint.tensors)), None)
    if names is None:
        raise checkpoint.error("it was given for the mean and standard deviation of image embeddings, and holds none")
    leaves = {}
    for path, name in zip(_UNIT, names):
        tensor = checkpoint.tensors[name]
        if tensor.shape not in ((size,), (1, size)) or not is_floating(tensor.dtype):
            raise checkpoint.error(
                f"{name} has the shape {list(tensor.shape)}; the model's image embeddings have {size} numbers"
            )
        row = dataclasses.replace(tensor, shape=(1, size), read=functools.partial(_row, tensor))
        leaves[path] = row.cast(dtype)
    return leaves


def _row(tensor: LazyTensor) -> np.ndarray:
    return tensor.read().reshape(1, -1)


def unit_statistics(size: int) -> dict[str, LazyTensor]:
    """Returns a mean of 0 and a standard deviation of 1: what a file that holds none stands for."""
    shape, kind = (1, size), np.dtype(np.float32)
    return {path: LazyTensor(shape, kind, functools.partial(np.full, shape, value)) for path, value in _UNIT.items()}


def are_unit(leaves: Mapping[str, LazyTensor]) -> bool:
    """Returns whether the statistics among a model's parameters are 0 and 1, for which single files hold none."""
    return all(bool(np.all(leaves[path].read() == value)) for path, value in _UNIT.items())
