"""Low-rank adapters of single pictures in one form, so that pictures with different ones, or none, share a program.

The form has factors for every linear layer and 1 x 1 convolution of the UNet's attention blocks, with ranks filled up
with zeros to a power of two. Adapters of other layers, and differences of whole parameters, keep a program of theirs.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import Array, PyTree

from sdjax.adapters.delta import LowRank
from sdjax.adapters.lora import ImageLoRA, LoRA, SharedLoRA
from sdjax.adapters.patch import Patch
from sdjax.typing import Params

SMALLEST = 16  # ranks are filled up to at least this


class OwnLoRA(NamedTuple):
    """The adapter of one picture: for each layer its factors, and their common rank. `during` as in ImageLoRA."""

    layers: Mapping[str, LowRank]
    rank: int
    weight: Array
    during: Array


def attention_layers(unet: Params) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the kernels of attention blocks that low-rank adapters usually change, by layer."""
    leaves = flatten_dict(unet, sep="/")
    return {
        path.removesuffix("/kernel"): tuple(leaf.shape)
        for path, leaf in leaves.items()
        if "attentions" in path and path.endswith("/kernel") and (leaf.ndim == 2 or tuple(leaf.shape[:2]) == (1, 1))
    }


def own_lora(patches: Sequence[Patch], shared: Sequence[PyTree], own: Sequence[PyTree], unet: Params) -> OwnLoRA | None:
    """Returns the adapter of one picture whose first patch is a low-rank adapter; None if it does not fit the form."""
    if not patches or not isinstance(patches[0], LoRA) or any(isinstance(one, LoRA) for one in patches[1:]):
        return None
    kept, given = shared[0], own[0]
    if not isinstance(kept, SharedLoRA) or not isinstance(given, ImageLoRA):
        return None
    if kept.whole or given.layers or given.whole:
        return None
    shapes = attention_layers(unet)
    if not kept.layers.keys() <= shapes.keys():
        return None
    rank = max((np.shape(one.up)[0] for one in kept.layers.values()), default=0)
    rank = max(SMALLEST, 1 << max(rank - 1, 0).bit_length())
    layers = {}
    for path, shape in shapes.items():
        if path in kept.layers:
            one = kept.layers[path]
            up = np.asarray(one.up, np.float32) * np.asarray(given.of_shared[path], np.float32)[0][:, None]
            layers[path] = LowRank(*_padded(np.asarray(one.down, np.float32)[None], up[None], rank), jnp.ones(1))
        else:
            layers[path] = _nothing(shape, rank)
    always = np.array([[np.inf, -np.inf]], np.float32)
    during = jnp.asarray(always if given.during is None else given.during)
    return OwnLoRA(layers, rank, jnp.asarray(given.weight), during)


def filled(one: OwnLoRA | None, like: OwnLoRA, rank: int) -> ImageLoRA:
    """Returns a picture's adapter at this rank; without one, an adapter without effect for the layers of `like`."""
    if one is None:
        layers = {
            path: _nothing((*each.down.shape[1:-1], each.up.shape[-1]), rank) for path, each in like.layers.items()
        }
        return ImageLoRA(layers, jnp.zeros(1), during=_always())
    if one.rank == rank:
        return ImageLoRA(dict(one.layers), one.weight, during=one.during)
    layers = {
        path: LowRank(*_padded(np.asarray(each.down), np.asarray(each.up), rank), each.scale)
        for path, each in one.layers.items()
    }
    return ImageLoRA(layers, one.weight, during=one.during)


def _padded(down: np.ndarray, up: np.ndarray, rank: int) -> tuple[Any, Any]:
    missing = rank - down.shape[-1]
    down = np.pad(down, [(0, 0)] * (down.ndim - 1) + [(0, missing)])
    return jax.device_put(down), jax.device_put(np.pad(up, [(0, 0), (0, missing), (0, 0)]))


@functools.lru_cache(maxsize=256)
def _nothing(shape: tuple[int, ...], rank: int) -> LowRank:
    zeros = np.zeros((1, *shape[:-1], rank), np.float32), np.zeros((1, rank, shape[-1]), np.float32)
    return LowRank(jax.device_put(zeros[0]), jax.device_put(zeros[1]), jnp.ones(1))


@functools.lru_cache(maxsize=1)
def _always() -> Array:
    return jnp.asarray(np.array([[np.inf, -np.inf]], np.float32))
