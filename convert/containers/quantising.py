"""Quantises the kernels of a model: which ones, and to which type."""

import functools
from collections.abc import Mapping

import numpy as np

from sdjax.convert.containers.lazy import FLOATS, LazyTensor, Packed
from sdjax.nn.quantised.kinds import AS_STORED, NOT, WRITTEN, Kind, kind_for, kind_named
from sdjax.nn.quantised.leaf import Quantised
from sdjax.nn.quantised.rounding import quantised
from sdjax.spelling import meant

PARTS = ("unet", "text")  # the autoencoder is small, and its errors are seen in every pixel
CHOICES = (AS_STORED, NOT, *WRITTEN)
# Few weights that everything goes through; stable-diffusion.cpp leaves them as they are too
_WHOLE = ("unet/time_embedding/", "unet/class_embedding/", "unet/conv_in/", "unet/conv_out/")


def check_choice(asked: object) -> str:
    """Returns a type to quantise to when a model is loaded, "auto" or "no". Raises ValueError for anything else."""
    name = asked.lower() if isinstance(asked, str) else asked
    if name not in CHOICES:
        raise ValueError(f"quantise is one of {', '.join(CHOICES)}; got {asked!r}{meant(asked, CHOICES)}")
    return str(name)


def quantised_leaves(leaves: Mapping[str, LazyTensor], asked: str) -> dict[str, LazyTensor]:
    """Returns a model's parameters by path with the kernels of the UNet and the text encoder quantised.

    `asked` is a type; "auto" leaves all as they are stored, and "no" quantises none. A kernel whose inputs do not
    divide into the type's blocks gets `Kind.instead`, or stays as it is. Kernels are rounded when they are read.
    """
    if check_choice(asked) == AS_STORED:
        return dict(leaves)
    if asked.lower() == NOT:
        return {path: _without(leaf) for path, leaf in leaves.items()}
    kind = kind_named(asked)
    return {path: _quantised(path, leaf, kind) for path, leaf in leaves.items()}


def _without(leaf: LazyTensor) -> LazyTensor:
    return LazyTensor(leaf.shape, leaf.dtype, leaf.read, leaf.release, leaf.name, leaf.stored)


def _quantised(path: str, leaf: LazyTensor, kind: Kind) -> LazyTensor:
    whole = not path.endswith("/kernel") or len(leaf.shape) < 2 or path.startswith(_WHOLE)
    own = None if whole or path.partition("/")[0] not in PARTS else kind_for(kind, leaf.shape[-2])
    if own is None or (leaf.packed is not None and leaf.packed.kind == own):
        return leaf if leaf.packed is None or own is not None else _without(leaf)
    source = leaf.stored or leaf
    packed = Packed(own, functools.partial(_read, source, own))
    return LazyTensor(leaf.shape, leaf.dtype, leaf.read, leaf.release, leaf.name, packed=packed)


def _read(leaf: LazyTensor, kind: Kind) -> Quantised:
    return quantised(kind, leaf.read().astype(np.float32, copy=False), FLOATS["float32"].name)
