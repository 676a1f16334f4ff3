"""Adapters: changes of a model's parameters, by the paths of the leaves. `merge` adds them to the parameters.

A change is linear in its weight s: W becomes W + s D(W), where D(W) = W' - W is what the adapter does at weight 1.
(BOFT is not, nor is DoRA as its trainers compute it: `NotLinear`.)
Several adapters add up, W + s1 D1(W) + s2 D2(W). Each D sees the base's W, so their order does not matter.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, TypeAlias, runtime_checkable

import jax.numpy as jnp
import numpy as np
from flax import struct
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array

from sdjax.nn.quantised.leaf import whole
from sdjax.typing import Params


class AdapterError(ValueError):
    """An adapter does not fit the network that it is applied to."""


class Delta(Protocol):
    """The change of one leaf, in Flax's layout: a kernel is [c, d] of a linear layer, [h, w, c, d] of a convolution."""

    def difference(self, base: Array) -> Array:
        """Returns W' - W at weight 1, float32 and of the leaf's shape. `base` is the leaf W in float32.

        Raises AdapterError if the change does not fit the leaf.
        """
        ...


@runtime_checkable
class NotLinear(Delta, Protocol):
    """A change that is not linear in its weight, such as BOFT's product of rotations."""

    def at(self, base: Array, weight: Array | float) -> Array:
        """Returns W' - W at this weight, float32 and of the leaf's shape."""
        ...


# By the path of the leaf with its network, "unet/down_blocks_0/attentions_0/proj_in/kernel" or "text/.../bias"
Adapter: TypeAlias = Mapping[str, Delta]


@struct.dataclass
class LowRank:
    """The change scale * down @ up of a kernel, whose rank r is small.

    For a linear layer `down` is [c, r] and `up` is [r, d]. For a convolution `down` is [h, w, c, r] and `up` is [r, d]:
    a convolution to r channels, then a 1x1 convolution. In most files `scale` is alpha / r.

    Source: Hu et al. 2021 (arXiv 2106.09685), section 4.1.
    """

    down: Array | np.ndarray
    up: Array | np.ndarray
    scale: Array | float = 1.0

    def difference(self, base: Array) -> Array:
        """Returns scale * down @ up, computed in float32."""
        if (*self.down.shape[:-1], self.up.shape[-1]) != base.shape or self.down.shape[-1] != self.up.shape[0]:
            raise AdapterError(f"{self.down.shape} times {self.up.shape} does not fit {base.shape}")
        down, up = jnp.asarray(self.down, jnp.float32), jnp.asarray(self.up, jnp.float32)
        return self.scale * (down.reshape(-1, down.shape[-1]) @ up).reshape(base.shape)


@struct.dataclass
class Difference:
    """The change itself, an array of the leaf's shape."""

    value: Array | np.ndarray

    def difference(self, base: Array) -> Array:
        """Returns the value in float32."""
        if self.value.shape != base.shape:
            raise AdapterError(f"a change of {self.value.shape} does not fit {base.shape}")
        return jnp.asarray(self.value, jnp.float32)


# Blocks of the UNet with a weight of their own: all 26 of the tools, and the 17 that hold attention
BLOCKS = ("BASE", *(f"IN{i:02}" for i in range(12)), "M00", *(f"OUT{i:02}" for i in range(12)))
HEAVIEST = 1000  # of weights; most are from 0 to 1
ATTENTION_BLOCKS = tuple(
    name for name in BLOCKS if name not in {"IN00", "IN03", "IN06", "IN09", "IN10", "IN11", "OUT00", "OUT01", "OUT02"}
)


@dataclasses.dataclass(frozen=True)
class Strength:
    """The weights of an adapter: of the UNet, of the text encoder, and of the UNet's blocks.

    `text` None means as the UNet. `blocks` are 17 numbers (`ATTENTION_BLOCKS`) or 26 (`BLOCKS`), which multiply; BASE
    is that of the text encoder. Blocks that the 17 leave out count 1, and so do layers outside the blocks.

    Raises ValueError for another number of blocks, and for weights beyond HEAVIEST.
    """

    unet: float = 1.0
    text: float | None = None
    blocks: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.blocks is not None and len(self.blocks) not in (len(BLOCKS), len(ATTENTION_BLOCKS)):
            raise ValueError(
                f"block weights are {len(ATTENTION_BLOCKS)} or {len(BLOCKS)} numbers; got {len(self.blocks)}"
            )
        for weight in (self.unet, self.text, *(self.blocks or ())):
            if isinstance(weight, int | float) and not abs(weight) <= HEAVIEST:
                raise ValueError(f"weights of adapters are numbers from {-HEAVIEST} to {HEAVIEST}; got {weight:g}")

    def of(self, path: str) -> float:
        """Returns the weight of a leaf by its path (`Adapter`)."""
        part = path.partition("/")[0]
        weight = self.text if part == "text" and self.text is not None else self.unet
        if self.blocks is None:
            return weight
        names = BLOCKS if len(self.blocks) == len(BLOCKS) else ATTENTION_BLOCKS
        return weight * dict(zip(names, self.blocks)).get(block_of(path) or "", 1.0)


def block_of(path: str) -> str | None:
    """Returns the block in which a leaf counts, a name of `BLOCKS`; None for layers outside the blocks.

    Resnets count with the block's attention. A downsampler is IN03, IN06 or IN09; an upsampler counts with the last
    block of its level, OUT02, OUT05 or OUT08. The names are those of Stable Diffusion's UNet, of four levels.
    """
    part, _, rest = path.partition("/")
    if part == "text":
        return "BASE"
    if rest.startswith("mid_block"):
        return "M00"
    found = re.match(r"(down|up)_blocks_(\d)/(resnets|attentions|downsamplers?|upsamplers?)_(\d)", rest)
    if found is None:
        return None
    way, level, kind, index = found[1], int(found[2]), found[3], int(found[4])
    if way == "down":
        return f"IN{3 * level + (3 if kind.startswith('down') else index + 1):02}"
    return f"OUT{3 * level + (2 if kind.startswith('up') else index):02}"


def merge(params: Params, adapters: Sequence[tuple[Adapter, float | Strength]]) -> Params:
    """Returns parameters with adapters and their weights merged into the leaves.

    A leaf is computed in float32 and rounded once, to its own dtype. Unchanged leaves are not copied. Raises
    AdapterError, naming every leaf that the model does not have or that has another shape. A changed leaf that was
    quantised is no longer.
    """
    leaves, problems = flatten_dict(params, sep="/"), []
    for path in dict.fromkeys(path for adapter, _ in adapters for path in adapter):
        if path not in leaves:
            problems.append(f"it has no {path!r}")
            continue
        changes = [(adapter[path], weight) for adapter, weight in adapters if path in adapter]
        try:
            leaves[path] = changed(leaves[path], [(delta, weight_of(weight, path)) for delta, weight in changes])
        except AdapterError as error:
            problems.append(f"{path!r}: {error}")
    if problems:
        raise AdapterError(f"the adapter does not fit the network: {'; '.join(problems)}")
    return unflatten_dict(leaves, sep="/")


def changed(leaf: Array | np.ndarray, changes: Iterable[tuple[Delta, float]]) -> Array:
    """Returns a leaf with changes at their weights, computed in float32 and rounded once."""
    base = jnp.asarray(whole(leaf), jnp.float32)
    return sum((difference_at(delta, base, weight) for delta, weight in changes if weight != 0), base).astype(
        leaf.dtype
    )


def difference_at(delta: Delta, base: Array, weight: Array | float) -> Array:
    """Returns what a change at this weight adds to the leaf `base` (float32)."""
    return delta.at(base, weight) if isinstance(delta, NotLinear) else weight * delta.difference(base)


def weight_of(weight: float | Strength, path: str) -> float:
    """Returns the weight of a leaf by its path."""
    return weight.of(path) if isinstance(weight, Strength) else weight
