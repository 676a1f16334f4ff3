"""The LoRA family beside LoRA itself: LoHa, LoKr, (IA)^3, GLoRA, OFT and BOFT, as changes of a kernel.

Their arrays are as files store them, for a weight W of PyTorch's layout: [o, i] of a linear layer, [o, i, h, w] of a
convolution. `difference` takes and returns Flax's layout. Everything is computed in float32.

Source: the papers named at each class, in the forms of LyCORIS (github.com/KohakuBlueleaf/LyCORIS).
"""

import dataclasses
import math
from typing import Protocol, TypeAlias

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array

from sdjax.adapters.delta import AdapterError

Weight: TypeAlias = Array  # in PyTorch's layout, float32
EPSILON = 1e-12  # of a norm that is divided by


class _Changes(Protocol):
    def change(self, weight: Weight) -> Weight: ...


class InFilesLayout:
    """Gives a class with `change`, which works in PyTorch's layout, the `difference` of a Delta."""

    def difference(self: _Changes, base: Array) -> Array:
        """Returns W' - W at weight 1, in Flax's layout. Raises AdapterError if the change does not fit the leaf."""
        weight = to_files_layout(jnp.asarray(base, jnp.float32))
        try:
            change = self.change(weight)
        except (TypeError, ValueError, IndexError, ZeroDivisionError) as error:
            if isinstance(error, AdapterError):
                raise
            raise AdapterError(f"its arrays do not fit a weight {weight.shape}") from None
        if change.size != weight.size:
            raise AdapterError(f"a change of {change.shape} does not fit a weight {weight.shape}")
        return to_flax_layout(change.reshape(weight.shape))


def to_files_layout(kernel: Array) -> Weight:
    """Returns a kernel of Flax in PyTorch's layout."""
    return kernel.transpose({2: (1, 0), 4: (3, 2, 0, 1)}.get(kernel.ndim, tuple(range(kernel.ndim))))


def to_flax_layout(weight: Weight) -> Array:
    """Returns a weight of PyTorch in Flax's layout."""
    return weight.transpose({2: (1, 0), 4: (2, 3, 1, 0)}.get(weight.ndim, tuple(range(weight.ndim))))


def _float32(array: ArrayLike) -> Array:
    return jnp.asarray(array, jnp.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class LoHa(InFilesLayout):
    """scale * (w1_a w1_b) o (w2_a w2_b), the product entry by entry of two low-rank matrices.

    w_a is [o, r] and w_b [r, i h w]. With `t1` and `t2` [r, r, h, w] (Tucker) w_a is [r, o] and w_b [r, i].
    Source: Hyeon-Woo et al. 2022 (arXiv 2108.06098), proposition 1.
    """

    w1_a: ArrayLike
    w1_b: ArrayLike
    w2_a: ArrayLike
    w2_b: ArrayLike
    t1: ArrayLike | None = None
    t2: ArrayLike | None = None
    scale: float = 1.0

    def change(self, weight: Weight) -> Weight:
        """See the class."""
        one = _product(self.w1_a, self.w1_b, self.t1)
        return self.scale * one * _product(self.w2_a, self.w2_b, self.t2)


@dataclasses.dataclass(frozen=True, eq=False)
class LoKr(InFilesLayout):
    """scale * (w1 kron w2). Each factor is whole or a product, w1 [o1, i1], w2 [o2, i2] or [o2, i2, h, w].

    Source: Edalati et al. 2022 (arXiv 2212.10650); Yeh et al. 2024 (arXiv 2309.14859), section 3.
    """

    w1: ArrayLike | None = None
    w1_a: ArrayLike | None = None
    w1_b: ArrayLike | None = None
    w2: ArrayLike | None = None
    w2_a: ArrayLike | None = None
    w2_b: ArrayLike | None = None
    t2: ArrayLike | None = None
    scale: float = 1.0

    def change(self, weight: Weight) -> Weight:
        """See the class."""
        outer = _float32(self.w1) if self.w1 is not None else _product(self.w1_a, self.w1_b, None)
        inner = _float32(self.w2) if self.w2 is not None else _product(self.w2_a, self.w2_b, self.t2)
        if inner.ndim == 2:  # a product, whose columns may be those of a convolution
            inputs = weight.shape[1] // outer.shape[1]
            inner = inner.reshape(inner.shape[0], inputs, *weight.shape[2:])
        return self.scale * jnp.kron(outer.reshape(*outer.shape, *(1,) * (inner.ndim - 2)), inner)


def _product(a: ArrayLike | None, b: ArrayLike | None, core: ArrayLike | None) -> Array:
    a, b = _float32(a), _float32(b)  # type: ignore[arg-type]
    if core is None:
        return a @ b
    return jnp.einsum("ij...,jr,ip->pr...", _float32(core), b, a)


@dataclasses.dataclass(frozen=True, eq=False)
class IA3(InFilesLayout):
    """W times one number for each output [o], or with `on_input` for each input [i].

    Source: Liu et al. 2022 (arXiv 2205.05638), section 3.3.
    """

    factors: ArrayLike
    on_input: bool = False

    def change(self, weight: Weight) -> Weight:
        """Returns W * factors."""
        shape = (1, -1) if self.on_input else (-1, 1)
        return weight * _float32(self.factors).reshape(*shape, *(1,) * (weight.ndim - 2))


@dataclasses.dataclass(frozen=True, eq=False)
class GLoRA(InFilesLayout):
    """scale * (W a1 a2 + b1 b2), with a1 [i, r], a2 [r, i], b1 [o, r], b2 [r, i h w].

    Source: Chavan et al. 2023 (arXiv 2306.07967), section 3.
    """

    a1: ArrayLike
    a2: ArrayLike
    b1: ArrayLike
    b2: ArrayLike
    scale: float = 1.0

    def change(self, weight: Weight) -> Weight:
        """See the class."""
        a1, a2, b1, b2 = (_float32(a).reshape(np.shape(a)[0], -1) for a in (self.a1, self.a2, self.b1, self.b2))
        return self.scale * (jnp.einsum("oi...,ij->oj...", weight, a1 @ a2) + (b1 @ b2).reshape(weight.shape))


@dataclasses.dataclass(frozen=True, eq=False)
class OFT(InFilesLayout):
    """R^T W, where R rotates the outputs in blocks: W's rows, n blocks of s. Then each row times `rescale` [o, ...].

    `blocks` B [n, s, s] gives R = (I + Q) / (I - Q) with Q = B - B^T (Cayley). `limit` is the greatest Frobenius norm
    of Q over all blocks; longer ones are shortened. None is no limit. Source: Qiu et al. 2023 (arXiv 2306.07280).
    """

    blocks: ArrayLike
    limit: float | None = None
    rescale: ArrayLike | None = None

    def change(self, weight: Weight) -> Weight:
        """Returns the rotated weight minus W."""
        rotations = _rotations(_float32(self.blocks), self.limit)
        n, s, _ = rotations.shape
        rotated = jnp.einsum("nij,ni...->nj...", rotations, weight.reshape(n, s, *weight.shape[1:]))
        return _rescaled(rotated.reshape(weight.shape), self.rescale) - weight


@dataclasses.dataclass(frozen=True, eq=False)
class BOFT(OFT):
    """Rotations as OFT's, m in turn, of rows in a butterfly's order: `blocks` is [m, n, s, s].

    At weight w each stage rotates by I + w (R - I). Source: Liu et al. 2024 (arXiv 2311.06243).
    """

    def change(self, weight: Weight) -> Weight:
        """Returns the rotated weight minus W."""
        return self._turned(weight, 1.0)

    def at(self, base: Array, weight: Array | float) -> Array:
        """See NotLinear."""
        return to_flax_layout(self._turned(to_files_layout(base), weight))

    def _turned(self, matrix: Weight, weight: Array | float) -> Weight:
        rotations = _rotations(_float32(self.blocks), self.limit)
        eye, turned = jnp.eye(rotations.shape[-1]), matrix
        for stage, rotation in enumerate(rotations):
            turned = _butterfly(eye + weight * (rotation - eye), turned, stage)
        return _rescaled(turned, self.rescale) - matrix


@dataclasses.dataclass(frozen=True)
class Rotation:
    """How PEFT makes rotations R of skew matrices Q: by `terms` of a series; None is Cayley's form (I - Q) / (I + Q).

    `terms` are I, 2 Q, 2 Q^2, ..., of which the last has the factor 1, as PEFT sums them. `eps` limits the norm of each
    of n blocks Q to eps / sqrt(n); None is no limit.
    """

    terms: int | None = 5
    eps: float | None = None

    def of(self, skew: Array) -> Array:
        """Returns the rotations of skew matrices [n, s, s]."""
        eye = jnp.eye(skew.shape[-1])
        if self.eps is not None:
            norm = jnp.sqrt(jnp.square(skew).sum((-2, -1), keepdims=True))
            limit = self.eps / len(skew) ** 0.5
            skew = jnp.where(norm > limit, skew * (limit / jnp.maximum(norm, EPSILON)), skew)
        if self.terms is None:
            return (eye - skew) @ jnp.linalg.inv(eye + skew)
        if self.terms < 3:
            return eye + 2 * (self.terms - 1) * skew
        power, out = skew, eye + 2 * skew
        for _ in range(2, max(self.terms - 1, 3)):
            power = power @ skew
            out = out + 2 * power
        return out + power @ skew


@dataclasses.dataclass(frozen=True, eq=False)
class InputOFT(InFilesLayout):
    """W R^T, where R rotates the inputs (of a convolution the inputs of all places) in n blocks of s.

    `vectors` [n, s (s - 1) / 2] are the upper triangles of the skew matrices Q, row by row; one vector for all blocks
    if there is only one. Source: Qiu et al. 2023 (arXiv 2306.07280), as PEFT 0.21 has it, tuners/oft/layer.py.
    """

    vectors: ArrayLike
    rotation: Rotation = Rotation()

    def change(self, weight: Weight) -> Weight:
        """Returns the rotated weight minus W."""
        vectors = _float32(self.vectors)
        side = block_side(vectors.shape[1])
        rows, columns = np.triu_indices(side, 1)
        upper = jnp.zeros((len(vectors), side, side)).at[:, rows, columns].set(vectors)
        rotations = self.rotation.of(upper - jnp.swapaxes(upper, -1, -2))
        matrix = weight.reshape(len(weight), -1, side)
        turned = jnp.einsum("oni,nji->onj", matrix, jnp.broadcast_to(rotations, (matrix.shape[1], side, side)))
        return turned.reshape(weight.shape) - weight


def block_side(count: int) -> int:
    """Returns the side s of a matrix whose upper triangle has `count` = s (s - 1) / 2 numbers, 0 if there is none."""
    side = (1 + math.isqrt(1 + 8 * count)) // 2
    return side if side * (side - 1) // 2 == count else 0


def _rotations(blocks: Array, limit: float | None) -> Array:
    skew = blocks - jnp.swapaxes(blocks, -1, -2)
    if limit is not None:
        norm = jnp.sqrt(jnp.maximum(jnp.square(skew).sum(), EPSILON))  # of 0 it has a slope too
        skew = skew * jnp.where(norm > limit, limit / norm, 1.0)
    eye = jnp.eye(blocks.shape[-1])
    return (eye + skew) @ jnp.linalg.inv(eye - skew)


def _rescaled(weight: Weight, factors: ArrayLike | None) -> Weight:
    return weight if factors is None else weight * _float32(factors).reshape(-1, *(1,) * (weight.ndim - 1))


def _butterfly(rotations: Array, weight: Weight, stage: int) -> Weight:
    """Returns the weight after a stage of BOFT: rows that are 2^stage half blocks apart meet in a block."""
    n, s, _ = rotations.shape
    k = 2**stage * (s // 2)
    rest = weight.shape[1:]
    ordered = weight.reshape(-1, 2, k, *rest).swapaxes(1, 2).reshape(n, s, *rest)
    turned = jnp.einsum("nij,nj...->ni...", rotations, ordered)
    return turned.reshape(-1, k, 2, *rest).swapaxes(1, 2).reshape(weight.shape)
