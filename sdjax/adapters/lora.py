"""Low-rank adapters as a patch: each image of a batch may have a different adapter and weight. Nothing is merged."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from flax.traverse_util import flatten_dict
from jaxtyping import Array

from sdjax.adapters.delta import AdapterError, Delta, Difference, LowRank
from sdjax.adapters.factoring import padded
from sdjax.adapters.patch import Context, Interceptor, path_of
from sdjax.nn.layers.conv import Conv, convolution
from sdjax.nn.layers.dense import Dense


@struct.dataclass
class ImageLoRA:
    """The adapters of a batch of b images: by the path of a layer, its low-rank change for each image.

    The arrays of each LowRank have the batch as their first axis: [b, c, r], [b, r, d] and [b]. `weight` multiplies
    the whole adapter of an image. With weight 0 the image is bit-identical to one without the patch.
    """

    layers: dict[str, LowRank]
    weight: Array  # [b]
    whole: dict[str, Array] = struct.field(default_factory=dict)  # by layer, differences of kernels [b, ...]
    during: Array | None = None  # [b, 2]: an image is changed at timesteps t with during[0] >= t > during[1]


@dataclass(frozen=True)
class LoRA:
    """Changes the outputs of linear layers and convolutions as low-rank changes of their kernels would.

    Its per-image arrays are an ImageLoRA. It has no shared arrays. Gradients with respect to the adapter work.
    """

    def intercept(self, shared: None, own: ImageLoRA) -> Interceptor:
        """Returns the interceptor: x W becomes x W + weight * scale * (x down) up.

        Calling the network raises AdapterError if it lacks a layer of the adapter, if the layer is not a linear layer
        or a convolution, or if its kernel has another shape. The error names all such layers.
        """

        weight = own.weight

        def intercept(
            method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: Context
        ) -> Any:
            nonlocal weight
            path = path_of(context)
            if not path:
                _check(context.module, own)
                if own.during is not None:
                    t = args[1]
                    weight = own.weight * ((own.during[:, 0] >= t) & (t > own.during[:, 1]))
            out = method(*args, **kwargs)
            if path in own.whole:
                high = _to_low_rank(context.module, args[0].astype(out.dtype), own.whole[path].astype(out.dtype))
                return out + weight.astype(out.dtype).reshape(-1, *(1,) * (out.ndim - 1)) * high
            if path not in own.layers:
                return out
            change = own.layers[path]
            low = _to_low_rank(context.module, args[0].astype(out.dtype), jnp.asarray(change.down, out.dtype))
            high = jnp.einsum("b...r,brd->b...d", low, change.up.astype(out.dtype), preferred_element_type=jnp.float32)
            factor = (weight * change.scale).reshape(-1, *(1,) * (high.ndim - 1))
            return out + (factor * high).astype(out.dtype)

        return intercept


def _check(network: nn.Module, own: ImageLoRA) -> None:
    """Raises AdapterError unless the network has each of these layers with a kernel of that shape."""
    if network.is_initializing():
        return
    leaves, problems = flatten_dict(network.variables["params"], sep="/"), []
    shapes = {path: (*change.down.shape[1:-1], change.up.shape[-1]) for path, change in own.layers.items()}
    for path, shape in {**shapes, **{path: change.shape[1:] for path, change in own.whole.items()}}.items():
        kernel = leaves.get(f"{path}/kernel")
        if kernel is None:
            problems.append(f"it has no layer {path!r} with a kernel")
        elif kernel.shape != shape:
            problems.append(f"the kernel of {path!r} is {kernel.shape}, the change {shape}")
    if problems:
        raise AdapterError(f"the adapter does not fit the network: {'; '.join(problems)}")


def _to_low_rank(layer: nn.Module, x: Array, down: Array) -> Array:
    """Returns x reduced to the rank of the adapter, each image by its own matrix or convolution."""
    if isinstance(layer, Dense):
        return jnp.einsum("b...c,bcr->b...r", x, down)
    if not isinstance(layer, Conv):
        raise AdapterError(f"low-rank changes are for linear layers and convolutions; {layer.name} is neither")

    def one(x: Array, kernel: Array) -> Array:
        return convolution(x[None], kernel, strides=layer.strides, padding=layer.padding)[0]

    return jax.vmap(one)(x, down)


def for_images(adapters: Sequence[tuple[Mapping[str, Delta], float]]) -> ImageLoRA:
    """Returns the adapters of a batch as arrays of one shape.

    `adapters` has an adapter of kernels (by their paths in the network) and its weight for each image. Its changes are
    low-rank, or differences. Ranks are padded with zeros to the next power of two, so that other adapters need no other
    program. A layer that an image's adapter does not change gets zeros. Use {} for an image without an adapter. Raises
    AdapterError if two adapters have different shapes for a layer.
    """
    low: dict[str, LowRank] = {}
    whole: dict[str, Array] = {}
    for path in sorted({path for adapter, _ in adapters for path in adapter}):
        changes = [adapter.get(path) for adapter, _ in adapters]
        known = [change for change in changes if change is not None]
        shapes = sorted({_shape(change) for change in known})
        if len(shapes) > 1:
            raise AdapterError(f"two adapters have different shapes for {path!r}: {', '.join(map(str, shapes))}")
        layer = path.removesuffix("/kernel")
        if all(isinstance(change, LowRank) for change in known):
            low[layer] = _stack([change for change in changes if change is None or isinstance(change, LowRank)])
        else:
            zero = jnp.zeros(shapes[0], jnp.float32)
            whole[layer] = jnp.stack([zero if change is None else change.difference(zero) for change in changes])
    return ImageLoRA(low, jnp.asarray([weight for _, weight in adapters], jnp.float32), whole)


def _shape(change: Delta) -> tuple[int, ...]:
    if isinstance(change, LowRank):
        return (*change.down.shape[:-1], change.up.shape[-1])
    assert isinstance(change, Difference)
    return change.value.shape


def _stack(changes: Sequence[LowRank | None]) -> LowRank:
    """Returns the changes of one layer, stacked over images; an image without a change gets zeros."""
    known = [change for change in changes if change is not None]
    rank = 1 << (max(change.down.shape[-1] for change in known) - 1).bit_length()
    none = jax.tree.map(jnp.zeros_like, _of_rank(known[0], rank))
    all_of_them = (none if change is None else _of_rank(change, rank) for change in changes)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *all_of_them)


def _of_rank(change: LowRank, rank: int) -> LowRank:
    wide = padded(change, rank)
    return LowRank(wide.down, wide.up, jnp.asarray(wide.scale, jnp.float32))
