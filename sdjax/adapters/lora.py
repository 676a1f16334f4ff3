"""Adapters as a patch: each image of a batch may have a different adapter and weight. Nothing is merged."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from flax.traverse_util import flatten_dict
from jax.typing import ArrayLike
from jaxtyping import Array

from sdjax.adapters.delta import AdapterError, LowRank
from sdjax.adapters.patch import Context, Interceptor, path_of
from sdjax.nn.layers.conv import Conv, conv2d, convolution
from sdjax.nn.layers.dense import Dense
from sdjax.nn.layers.norm import GroupNorm, LayerNorm, group_norm, layer_norm


@struct.dataclass
class SharedLoRA:
    """Adapters that are kept once for all images of a batch (`share_by_images`).

    `layers`: by the path of a layer, the factors of all adapters side by side, [c, r] and [r, d]. `whole`: by the path
    of a leaf, differences of the leaf [k, ...].
    """

    layers: dict[str, LowRank]
    whole: dict[str, Array]


@struct.dataclass
class ImageLoRA:
    """The adapters of a batch of b images. All arrays have the batch as their first axis.

    `weight` multiplies the whole adapter of an image. With weight 0 the image is bit-identical to one without the
    patch. `layers` and `whole` are what each image has alone: by the path of a layer low-rank changes [b, c, r],
    [b, r, d] and [b], and by the path of a leaf differences [b, ...]. `of_shared` are each image's factors of what is
    in a SharedLoRA: by layer [b, r], and by leaf [b, k].
    """

    layers: dict[str, LowRank]
    weight: Array  # [b]
    whole: dict[str, Array] = struct.field(default_factory=dict)
    of_shared: dict[str, Array] = struct.field(default_factory=dict)
    during: Array | None = None  # [b, 2]: an image is changed at timesteps t with during[0] >= t > during[1]


@dataclass(frozen=True)
class LoRA:
    """Changes the outputs of linear layers, convolutions and norms as changes of their parameters would.

    Its shared arrays are a SharedLoRA or None, its per-image arrays an ImageLoRA. Gradients with respect to the adapter
    work.
    """

    def intercept(self, shared: SharedLoRA | None, own: ImageLoRA) -> Interceptor:
        """Returns the interceptor: x W becomes x W + weight * scale * (x down) up.

        Calling the network raises AdapterError if it lacks a layer of the adapter, if the layer is of another kind, or
        if a parameter has another shape. The error names all such layers.
        """
        changed = {path.rpartition("/")[0] for path in _shapes(shared, own)}
        weight = own.weight

        def intercept(
            method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: Context
        ) -> Any:
            nonlocal weight
            path = path_of(context)
            if not path:
                _check(context.module, shared, own)
                if own.during is not None:
                    t = args[1]
                    weight = own.weight * ((own.during[:, 0] >= t) & (t > own.during[:, 1]))
            if path not in changed:
                return method(*args, **kwargs)
            out, changes = method(*args, **kwargs), _Changes(shared, own, weight)
            if isinstance(context.module, GroupNorm | LayerNorm):
                norm = _normed(context.module, args[0], changes, path)
                return jnp.where(_over_images(weight, out) == 0, out, norm)
            return changes.added(context.module, path, args[0], out)

        return intercept


@dataclass(frozen=True)
class _Changes:
    """What is added to the outputs of layers, at weights [b] of the images."""

    shared: SharedLoRA | None
    own: ImageLoRA
    weight: Array

    def added(self, layer: nn.Module, path: str, x: Array, out: Array) -> Array:
        """Returns the output of a linear layer or convolution with the changes of its kernel and bias."""
        if not isinstance(layer, Dense | Conv):
            raise AdapterError(f"changes are for linear layers, convolutions and norms; {path} is none of these")
        x, kernel = x.astype(out.dtype), f"{path}/kernel"
        if self.shared is not None and path in self.shared.layers:
            change, factors = self.shared.layers[path], self.weight[:, None] * self.own.of_shared[path]
            low = _through(layer, x, change.down)
            low = (_over_images(factors, low) * low).astype(out.dtype)
            out = out + _through(None, low, change.up).astype(out.dtype)
        if self.shared is not None and kernel in self.shared.whole:
            for k, difference in enumerate(self.shared.whole[kernel]):
                share = self.weight * self.own.of_shared[kernel][:, k]
                high = _through(layer, x, difference)
                out = out + (_over_images(share, high) * high).astype(out.dtype)
        if path in self.own.layers:
            change = self.own.layers[path]
            low = _through_own(layer, x, change.down)
            low = (_over_images(self.weight * change.scale, low) * low).astype(out.dtype)
            out = out + _through_own(None, low, change.up).astype(out.dtype)
        if kernel in self.own.whole:
            high = _through_own(layer, x, self.own.whole[kernel])
            out = out + (_over_images(self.weight, high) * high).astype(out.dtype)
        bias = self.vector(f"{path}/bias")
        return out if bias is None else out + _over_images(bias, out).astype(out.dtype)

    def vector(self, leaf: str) -> Array | None:
        """Returns what is added to a bias or scale, [b, c] float32, None if it is not changed."""
        terms = []
        if leaf in self.own.whole:
            terms.append(self.own.whole[leaf])
        if self.shared is not None and leaf in self.shared.whole:
            terms.append(self.own.of_shared[leaf] @ self.shared.whole[leaf])
        return self.weight[:, None] * sum(terms) if terms else None


def _over_images(factors: Array, like: Array) -> Array:
    """Returns factors [b] or [b, c] in the shape that multiplies a map [b, ..., c]."""
    b, *rest = factors.shape
    return factors.reshape(b, *(1,) * (like.ndim - 1 - len(rest)), *rest)


def _through(layer: nn.Module | None, x: Array, kernel: ArrayLike) -> Array:
    """Returns x times a matrix in float32, or through a kernel as the layer's own. It is the same for all images."""
    kernel = jnp.asarray(kernel, x.dtype)
    if isinstance(layer, Conv):
        return conv2d(x, kernel, strides=layer.strides, padding=layer.padding)
    return jnp.matmul(x, kernel, preferred_element_type=jnp.float32)


def _through_own(layer: nn.Module | None, x: Array, kernel: ArrayLike) -> Array:
    """Returns the same with a matrix or kernel for each image."""
    kernel = jnp.asarray(kernel, x.dtype)
    if not isinstance(layer, Conv):
        return jnp.einsum("b...c,bcd->b...d", x, kernel, preferred_element_type=jnp.float32)

    def one(x: Array, kernel: Array) -> Array:
        return convolution(x[None], kernel, strides=layer.strides, padding=layer.padding)[0]

    return jax.vmap(one)(x, kernel)


def _normed(layer: GroupNorm | LayerNorm, x: Array, changes: _Changes, path: str) -> Array:
    """Returns the output of a norm, each image with its own scale and bias."""
    params = layer.variables["params"]
    scale, bias = (
        jnp.broadcast_to(params[leaf].astype(jnp.float32), (len(x), x.shape[-1]))
        + (0.0 if (change := changes.vector(f"{path}/{leaf}")) is None else change)
        for leaf in ("scale", "bias")
    )

    def one(x: Array, scale: Array, bias: Array) -> Array:
        if isinstance(layer, LayerNorm):
            return layer_norm(x, scale, bias, epsilon=layer.epsilon)
        return group_norm(x[None], scale, bias, groups=layer.groups, epsilon=layer.epsilon)[0]

    y = jax.vmap(one)(x, scale, bias).astype(layer.dtype)
    return jax.nn.silu(y) if isinstance(layer, GroupNorm) and layer.silu else y


def _shapes(shared: SharedLoRA | None, own: ImageLoRA) -> Mapping[str, tuple[int, ...]]:
    """Returns the shapes of the leaves that are changed, by their paths."""
    shapes = {f"{path}/kernel": (*one.down.shape[1:-1], one.up.shape[-1]) for path, one in own.layers.items()}
    whole = dict(own.whole)
    if shared is not None:
        shapes |= {f"{path}/kernel": (*one.down.shape[:-1], one.up.shape[-1]) for path, one in shared.layers.items()}
        whole |= shared.whole
    return shapes | {path: change.shape[1:] for path, change in whole.items()}


def _check(network: nn.Module, shared: SharedLoRA | None, own: ImageLoRA) -> None:
    """Raises AdapterError unless the network has each of these leaves with that shape."""
    if network.is_initializing():
        return
    leaves, problems = flatten_dict(network.variables["params"], sep="/"), []
    for path, shape in _shapes(shared, own).items():
        layer, _, name = path.rpartition("/")
        if path not in leaves:
            problems.append(f"it has no layer {layer!r} with a {name}")
        elif leaves[path].shape != shape:
            problems.append(f"the {name} of {layer!r} is {leaves[path].shape}, the change {shape}")
    if problems:
        raise AdapterError(f"the adapter does not fit the network: {'; '.join(problems)}")
