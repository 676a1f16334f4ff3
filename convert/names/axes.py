"""Converts arrays between the axis orders of PyTorch's files and Flax's parameter trees.

The layout follows what a parameter is, never its shape alone: OpenCLIP's text projection is square, and embeddings are
not transposed though matrices are. Flax keeps a convolution's kernel as [height, width, in, out] and a matrix as
[in, out]; PyTorch as [out, in, height, width] and [out, in].
"""

from typing import Literal

import numpy as np

Kind = Literal["same", "matrix", "convolution"]


def kind_of(path: str, shape: tuple[int, ...]) -> Kind:
    """Returns how the parameter at a Flax path, "unet/conv_in/kernel" for example, changes between the two."""
    if path.rpartition("/")[2] != "kernel":
        return "same"
    return "convolution" if len(shape) == 4 else "matrix"


def stored_shape(kind: Kind, shape: tuple[int, ...], *, pointwise: bool = False) -> tuple[int, ...]:
    """Returns the shape that PyTorch's files have for Flax's; `pointwise` stores a matrix as a 1x1 convolution."""
    if kind == "convolution":
        height, width, inputs, outputs = shape
        return (outputs, inputs, height, width)
    if kind == "matrix":
        return (shape[1], shape[0], 1, 1) if pointwise else (shape[1], shape[0])
    return shape


def to_flax(kind: Kind, array: np.ndarray) -> np.ndarray:
    """Returns PyTorch's array as Flax keeps it, as a view."""
    if kind == "convolution":
        return array.transpose(2, 3, 1, 0)
    if kind == "matrix":  # a 1x1 convolution's last two axes are dropped
        return array.reshape(array.shape[:2]).T
    return array


def to_torch(kind: Kind, array: np.ndarray, *, pointwise: bool = False) -> np.ndarray:
    """Returns Flax's array as PyTorch's files keep it, as a view."""
    if kind == "convolution":
        return array.transpose(3, 2, 0, 1)
    if kind == "matrix":
        return array.T[:, :, None, None] if pointwise else array.T
    return array
