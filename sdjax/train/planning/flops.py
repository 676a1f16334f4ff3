"""Floating-point operations of a loss and its gradient, counted layer by layer from shapes.

A linen interceptor sees every call of a layer while the loss is traced, and RULES gives the operations of the layer's
products: two for each multiplication with its addition. Products are nearly all of a network's work. Element-wise
operations, reductions, norms and the optimiser are not counted. XLA's own count (`compiled.cost_analysis()`) needs a
compilation, counts the body of a scan once, and does not count external kernels.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from flax.linen.module import InterceptorContext
from jax.custom_derivatives import SymbolicZero
from jaxtyping import PyTree

from sdjax.nn import UNet
from sdjax.nn.depth.bit import StandardConv, same_padding
from sdjax.nn.layers.conv import Conv, Padding
from sdjax.nn.layers.dense import Dense
from sdjax.nn.layers.multihead import Attend
from sdjax.nn.layers.resnet import Resnet
from sdjax.nn.layers.transformer import SpatialTransformer

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Flops:
    """Floating-point operations of a loss and its gradient.

    `forward` and `backward` are the operations that the model needs; `recomputed` are those that rematerialisation
    repeats in the backward pass. `by_layer` gives each layer's share of forward and backward, by its path of module
    names: "UNet/down_blocks_0/resnets_0/conv1".
    """

    forward: int
    backward: int
    recomputed: int
    by_layer: dict[str, int]

    @property
    def model(self) -> int:
        """The operations that the model needs, without recomputed ones: the count that defines MFU.

        Source: Chowdhery et al. 2022, PaLM (arXiv 2204.02311), appendix B.
        """
        return self.forward + self.backward

    def groups(self, depth: int = 2) -> dict[str, int]:
        """Returns the layers' counts added up by the first `depth` names of their paths, in order of first use."""
        out: dict[str, int] = {}
        for path, count in self.by_layer.items():
            group = "/".join(path.split("/")[:depth])
            out[group] = out.get(group, 0) + count
        return out

    def table(self, depth: int = 2) -> str:
        """Returns a line for each group of layers: its name, billions of operations, and share of the total."""
        groups = {**self.groups(depth), "total": self.model}
        width = max(map(len, groups))
        share = {name: 100 * count / max(self.model, 1) for name, count in groups.items()}
        return "\n".join(
            f"{name:{width}}  {count / 1e9:12,.1f} GFLOP  {share[name]:5.1f} %" for name, count in groups.items()
        )


def count(loss: Callable[..., PyTree], params: PyTree, *args: PyTree, remat: str = "none") -> Flops:
    """Returns the floating-point operations of `loss(params, *args)` and of its gradient with respect to `params`.

    In the backward pass a product costs its forward operations once for each of its two factors that depends on
    `params`. A convolution's multiplications with padding are not counted.

    Args:
        loss: returns (value, anything). Its networks are sdjax's, called outside of `jax.vmap` and loops.
        params, args: arrays, or jax.ShapeDtypeStruct in their place: nothing is computed or allocated.
        remat: what the UNet's backward pass computes again, of `sdjax.nn.unet.REMATS`.

    Raises ValueError for a layer with a kernel that no rule counts.
    """
    counter = _Counter()
    with nn.intercept_methods(counter):
        jax.eval_shape(jax.grad(loss, has_aux=True), params, *args)
    forward = backward = recomputed = 0
    by_layer: dict[str, int] = {}
    for product in counter.products:
        gradients = sum(any(source.needed for source in factor) for factor in product.factors)
        forward += product.operations
        backward += gradients * product.operations
        if gradients and RECOMPUTED[remat](product):
            recomputed += product.operations
        by_layer[product.path] = by_layer.get(product.path, 0) + (1 + gradients) * product.operations
    return Flops(forward, backward, recomputed, by_layer)


@dataclasses.dataclass
class _Source:
    """An array that a product depends on. `needed` says whether the loss's gradient needs the array's gradient."""

    needed: bool = False

    def watched(self, x: jax.Array) -> jax.Array:
        """Returns x, such that `needed` becomes true when something that depends on `params` is differentiated."""

        @jax.custom_jvp
        def same(x: jax.Array) -> jax.Array:
            return x

        @functools.partial(same.defjvp, symbolic_zeros=True)
        def _(primals: tuple[jax.Array], tangents: tuple[Any]) -> tuple[jax.Array, Any]:
            self.needed |= not isinstance(tangents[0], SymbolicZero)
            return same(primals[0]), tangents[0]

        return same(x)


class _Product(NamedTuple):
    """A product that a layer computes: its operations, and what each of its two factors depends on."""

    path: str
    modules: tuple[type[nn.Module], ...]  # the layer's type and those of the modules around it, outermost first
    operations: int
    factors: tuple[tuple[_Source, ...], tuple[_Source, ...]]


class _Counter:
    """An interceptor that notes the products of every layer that is called."""

    def __init__(self) -> None:
        self.products: list[_Product] = []
        self._modules: list[nn.Module] = []

    def __call__(
        self, method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any],
        context: InterceptorContext,
    ) -> Any:  # fmt: skip
        self._modules.append(context.module)
        try:
            if context.method_name == "__call__":
                args = tuple(self._noted(context.module, args))
            return method(*args, **kwargs)
        finally:
            self._modules.pop()

    def _noted(self, layer: nn.Module, args: tuple[Any, ...]) -> Iterator[Any]:
        """Yields the layer's arguments, watched where the layer computes products."""
        rule = next((RULES[kind] for kind in type(layer).__mro__ if kind in RULES), None)
        kernel = layer.variables.get("params", {}).get("kernel")
        if rule is None:
            if kernel is not None:
                raise ValueError(f"no rule counts the operations of {type(layer).__name__}")
            yield from args
            return
        operations = rule(layer, *(arg.shape for arg in args if arg is not None))
        sources = [_Source() for _ in args]
        factors = [((sources[0],), (sources[1],)), (tuple(sources[:2]), (sources[2],))] if kernel is None else []
        if kernel is not None:
            own = _Source()
            own.watched(kernel)
            factors = [((sources[0],), (own,))]
        path = "/".join([type(self._modules[0]).__name__, *layer.path])
        modules = tuple(type(module) for module in self._modules)
        self.products += [_Product(path, modules, operations, pair) for pair in factors]
        for source, arg in zip(sources, args, strict=True):
            yield source.watched(arg) if isinstance(arg, jax.Array) else arg


def _in_a_block(product: _Product) -> bool:
    """Returns whether a product is within one of the UNet's blocks that rematerialisation is about."""
    root, *inside = product.modules
    return issubclass(root, UNet) and any(issubclass(module, Resnet | SpatialTransformer) for module in inside)


# What a backward pass computes again, by the names of sdjax.nn.unet.REMATS
RECOMPUTED: dict[str, Callable[[_Product], bool]] = {
    "none": lambda product: False,
    "blocks": _in_a_block,
    "products": lambda product: _in_a_block(product) and issubclass(product.modules[-1], Attend),
}


def _dense(layer: Dense, x: Shape) -> int:
    return 2 * math.prod(x) * layer.features


def _attend(layer: Attend, q: Shape, k: Shape, v: Shape, key_length: Shape = ()) -> int:
    return 2 * math.prod(q) * k[1]  # q k and weights v have the same number


def _conv(layer: Conv, x: Shape) -> int:
    return convolution(x, layer.kernel_size, layer.features, layer.strides, layer.padding)


def _standard_conv(layer: StandardConv, x: Shape) -> int:
    sides, strides = (layer.kernel_size,) * 2, (layer.stride,) * 2
    return convolution(x, sides, layer.features, strides, same_padding((x[1], x[2]), layer.kernel_size, layer.stride))


def convolution(x: Shape, sides: tuple[int, int], features: int, strides: tuple[int, int], padding: Padding) -> int:
    """Returns the operations of a convolution of a map [b, h, w, c], none of them with padding."""
    b, h, w, c = x
    pairs = map(_pairs, (h, w), sides, strides, padding)
    return 2 * b * c * features * math.prod(pairs)


@functools.lru_cache(maxsize=1024)
def _pairs(size: int, kernel: int, stride: int, padding: tuple[int, int]) -> int:
    """Returns how many pairs of an input and a kernel element a convolution multiplies along one axis."""
    out = (size + sum(padding) - kernel) // stride + 1
    at = np.arange(out)[:, None] * stride + np.arange(kernel) - padding[0]
    return int(((at >= 0) & (at < size)).sum())


# Operations of one product of a layer, of the layer and its arguments' shapes
RULES: dict[type[nn.Module], Callable[..., int]] = {
    Attend: _attend, Conv: _conv, Dense: _dense, StandardConv: _standard_conv,
}  # fmt: skip
