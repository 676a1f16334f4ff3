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

from sdjax.adapters.delta import AdapterError, LowRank
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

        def intercept(
            method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: Context
        ) -> Any:
            path = path_of(context)
            if not path:
                _check(context.module, own.layers)
            out = method(*args, **kwargs)
            if path not in own.layers:
                return out
            change = own.layers[path]
            low = _to_low_rank(context.module, args[0].astype(out.dtype), jnp.asarray(change.down, out.dtype))
            high = jnp.einsum("b...r,brd->b...d", low, change.up.astype(out.dtype), preferred_element_type=jnp.float32)
            factor = (own.weight * change.scale).reshape(-1, *(1,) * (high.ndim - 1))
            return out + (factor * high).astype(out.dtype)

        return intercept


def _check(network: nn.Module, layers: Mapping[str, LowRank]) -> None:
    """Raises AdapterError unless the network has each of these layers with a kernel of that shape."""
    if network.is_initializing():
        return
    leaves, problems = flatten_dict(network.variables["params"], sep="/"), []
    for path, change in layers.items():
        kernel = leaves.get(f"{path}/kernel")
        shape = (*change.down.shape[1:-1], change.up.shape[-1])
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


def for_images(adapters: Sequence[tuple[Mapping[str, LowRank], float]]) -> ImageLoRA:
    """Returns the adapters of a batch as arrays of one shape. `adapters` has an adapter of
    kernels (by their paths in the network) and its weight for each image.

    Smaller ranks are padded with zeros. A layer that an image's adapter does not change gets zeros. Use {} for an image
    without an adapter. Raises AdapterError if two adapters have different shapes for a layer.
    """
    paths = sorted({path for adapter, _ in adapters for path in adapter})
    layers = {
        path.removesuffix("/kernel"): _stack(path, [adapter.get(path) for adapter, _ in adapters]) for path in paths
    }
    return ImageLoRA(layers, jnp.asarray([weight for _, weight in adapters], jnp.float32))


def _stack(path: str, changes: Sequence[LowRank | None]) -> LowRank:
    """Returns the changes of one layer, stacked over images; an image without a change gets zeros."""
    known = [change for change in changes if change is not None]
    shapes = sorted({(*change.down.shape[:-1], change.up.shape[-1]) for change in known})
    if len(shapes) > 1:
        raise AdapterError(f"two adapters have different shapes for {path!r}: {', '.join(map(str, shapes))}")
    rank = max(change.down.shape[-1] for change in known)
    none = jax.tree.map(jnp.zeros_like, _padded(known[0], rank))
    padded = [none if change is None else _padded(change, rank) for change in changes]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *padded)


def _padded(change: LowRank, rank: int) -> LowRank:
    more = rank - change.down.shape[-1]
    down = jnp.pad(change.down, [*[(0, 0)] * (change.down.ndim - 1), (0, more)])
    return LowRank(down, jnp.pad(change.up, [(0, more), (0, 0)]), jnp.asarray(change.scale, jnp.float32))
