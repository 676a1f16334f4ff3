"""The leaf of a parameter tree that holds a quantised kernel, and becomes an array where its layer uses it.

A network does not know of it: `self.param` of flax unboxes the leaf (`flax.core.meta`). Linear layers and convolutions
ask for their kernels by `kernel_for`, so that a compiled program makes a layer's array when its turn comes.
"""

import contextvars
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import struct
from flax.core import meta
from jaxtyping import Array

from sdjax.nn.quantised.kinds import KINDS
from sdjax.nn.quantised.planes import joined
from sdjax.scoped import scoped

FLOAT8 = np.dtype(ml_dtypes.float8_e4m3fn)

AnyArray: TypeAlias = Array | np.ndarray

_when: contextvars.ContextVar[Array | None] = contextvars.ContextVar("when", default=None)


class Quantised(struct.PyTreeNode, meta.AxisMetadata[Any]):
    """A quantised kernel [..., c, d]: codes of few bits, and what they are multiplied by.

    Every array has the outputs d as its last axis. A block type (`Kind.block`) has them in blocks along the inputs c.

    Attributes:
        codes: of a scaled type one array [..., c, d] of int8, or of the bits of float8 as uint8; of a block type one
            for each power of two that its bits are a sum of, bytes [..., c / 32, 32 bits / 8, d]
            (`sdjax.nn.quantised.planes`).
        scale: float32 [d] of a scaled type, float16 [..., c / block, d] of a block type.
        offset: float16 of the shape of `scale`, or None.
        small_scale: int8 [..., c / group, d], or None.
        small_offset: the same for the offset.
        kind: the name of the type, of `sdjax.nn.quantised.kinds.KINDS`.
        shape: of the kernel.
        dtype: the name of the floating-point type that the kernel gets.
    """

    codes: tuple[AnyArray, ...]
    scale: AnyArray
    offset: AnyArray | None = None
    small_scale: AnyArray | None = None
    small_offset: AnyArray | None = None
    kind: str = struct.field(pytree_node=False, default="int8")
    shape: tuple[int, ...] = struct.field(pytree_node=False, default=())
    dtype_name: str = struct.field(pytree_node=False, default="float32")

    @property
    def dtype(self) -> np.dtype:
        """The floating-point type that the kernel gets."""
        return np.dtype(jnp.dtype(self.dtype_name))

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of weights."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The bytes of its arrays."""
        return sum(array.nbytes for array in jax.tree.leaves(self))

    def whole(self) -> AnyArray:
        """Returns the kernel in float32 and rounded once to its type: NumPy's if the leaf's arrays are NumPy's."""
        kind = KINDS[self.kind]
        if not kind.block:
            codes = self.codes[0] if self.kind == "int8" else _float8(self.codes[0])
            return (codes.astype(np.float32) * self.scale).astype(self.dtype)
        *outer, c, d = self.shape
        groups, blocks = (*outer, c // kind.block, -1, kind.group, d), (*outer, c // kind.block, 1, 1, d)
        small = (*outer, c // kind.block, -1, 1, d)
        code = joined(self.codes, kind.bits).reshape(groups).astype(np.float32)
        scale = self.scale.reshape(blocks).astype(np.float32)
        if self.small_scale is not None:
            scale = scale * self.small_scale.reshape(small).astype(np.float32)
        weights = scale * (code - kind.zero if kind.zero else code)
        if self.offset is not None:
            offset = self.offset.reshape(blocks).astype(np.float32)
            if self.small_offset is not None:
                offset = offset * self.small_offset.reshape(small).astype(np.float32)
            weights = weights + offset
        return weights.reshape(self.shape).astype(self.dtype)

    def outputs(self, index: int, count: int) -> "Quantised":
        """Returns a kernel of one of `count` equal parts of the outputs; an array for all outputs stays as it is."""

        def part(array: AnyArray) -> AnyArray:
            return array if array.shape[-1] != self.shape[-1] else np.split(array, count, axis=-1)[index]

        *rest, d = self.shape
        return jax.tree.map(part, self).replace(shape=(*rest, d // count)) if count > 1 else self

    def reshaped(self, shape: tuple[int, ...]) -> "Quantised":
        """Returns the kernel with other axes before inputs and outputs: a 1x1 convolution is a matrix."""
        if shape == self.shape:
            return self
        now, then = len(self.shape) - 2, shape[:-2]
        scaled = not KINDS[self.kind].block

        def other(array: AnyArray) -> AnyArray:
            return array if scaled and array is self.scale else array.reshape(*then, *array.shape[now:])

        return jax.tree.map(other, self).replace(shape=shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Returns the kernel as NumPy's array."""
        array = np.asarray(jax.tree.map(np.asarray, self).whole())
        return array if dtype is None else array.astype(dtype)

    def unbox(self) -> AnyArray:
        """Returns the kernel, in a program made after the input of the layer that asks for it (`kernel_for`)."""
        x = _when.get()
        if x is None:
            return self.whole()
        return self.replace(codes=_made_after(x, self.codes)).whole()

    def replace_boxed(self, val: Any) -> Any:
        return val

    def add_axis(self, index: int, params: dict[Any, Any]) -> "Quantised":
        raise NotImplementedError("layers with quantised kernels are not stacked")

    remove_axis = add_axis


def _float8(bits: AnyArray) -> AnyArray:
    """Returns the numbers of bits. XLA turns choices of float8 numbers into those of wider ones; bits stay bits."""
    if isinstance(bits, np.ndarray):
        return bits.view(FLOAT8)
    return jax.lax.bitcast_convert_type(bits, FLOAT8)


def _made_after(x: Array, codes: tuple[AnyArray, ...]) -> tuple[AnyArray, ...]:
    """Returns codes, but makes XLA compute x first.

    The choice's outcome is always the same, but XLA does not know this. (A barrier is not enough: the CPU backend drops
    it before it moves computations out of loops.) If XLA divides x among devices, as for a clip's frames, a number is
    exchanged for each layer.
    """
    never = x[(0,) * x.ndim] > jnp.inf

    return tuple(jnp.where(never, jnp.zeros((), code.dtype), code) for code in codes)


def kernel_for(layer: nn.Module, x: Array, init: Callable[..., Any], shape: tuple[int, ...]) -> Array:
    """Returns the parameter "kernel" of a layer whose input is x.

    XLA would compute what does not depend on a loop's state before the loop, and then hold all kernels of the network.
    So a quantised kernel depends on x.
    """
    with scoped(_when, x):
        return layer.param("kernel", init, shape)


def side_by_side(leaves: Sequence[Quantised]) -> Quantised:
    """Returns the kernel of all outputs of kernels of one type and the same inputs."""
    first = leaves[0]
    if len(leaves) == 1:
        return first
    if not KINDS[first.kind].block:  # one scale for all outputs becomes one for each
        leaves = [leaf.replace(scale=np.broadcast_to(leaf.scale, leaf.shape[-1:])) for leaf in leaves]
    arrays = jax.tree.map(lambda *parts: np.concatenate(parts, axis=-1), *[jax.tree.leaves(leaf) for leaf in leaves])
    whole = jax.tree.unflatten(jax.tree.structure(first), arrays)
    return whole.replace(shape=(*first.shape[:-1], sum(leaf.shape[-1] for leaf in leaves)))


def is_quantised(leaf: object) -> bool:
    """Returns whether a leaf of a parameter tree is quantised: for `is_leaf` of `jax.tree.map`."""
    return isinstance(leaf, Quantised)


def quantised_count(tree: Any) -> int:
    """Returns the number of quantised leaves of a parameter tree."""
    return sum(map(is_quantised, jax.tree.leaves(tree, is_leaf=is_quantised)))


def whole(leaf: Any) -> Any:
    """Returns a leaf as an array: a quantised one in its floating-point type, any other one as it is."""
    return leaf.whole() if isinstance(leaf, Quantised) else leaf
