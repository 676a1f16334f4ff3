"""Low-rank changes beside the kernels that they change, in a network's own parameters: how LoRA and DoRA are trained.

    params = {..., "to_q": {"kernel": kernel, "change": LowRank(down, up, scale)}}
    with patched([Attached()]):
        prediction = UNet(config).apply({"params": params}, x, t, context)

The kernel gets no gradient of its own size, and a small change is not rounded to the kernel's type.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array

from sdjax.adapters.delta import LowRank
from sdjax.adapters.dora import lengths
from sdjax.adapters.patch import Context, Interceptor
from sdjax.nn.layers.conv import Conv, convolution
from sdjax.nn.layers.dense import Dense
from sdjax.nn.quantised.leaf import whole
from sdjax.typing import Params

CHANGE = "change"  # beside "kernel": a LowRank
MAGNITUDE = "magnitude"  # beside it, with DoRA: the length of each output's weights, [d]
TABLES = ("token_embedding/embedding", "embed_tokens/embedding")  # CLIP's and LAION-400M's, ends of paths
LEAST_ROWS = 16
ROWS = "rows"  # beside "embedding": the vectors [n, d] of the tokens after the last one of the table


@dataclass(frozen=True)
class Attached:
    """Adds the changes that lie beside kernels, and the rows that lie beside tables of embeddings. It has no arrays."""

    def intercept(self, shared: None, own: None) -> Interceptor:
        """Returns the interceptor. Layers without such parameters are not changed.

        A linear layer or convolution x W + b becomes x W + scale (x down) up + b, with DoRA's magnitudes m
        (x W + scale (x down) up) m / |W + scale down up| + b.
        """

        def intercept(
            method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: Context
        ) -> Any:
            layer = context.module
            if not isinstance(layer, Dense | Conv | nn.Embed):
                return method(*args, **kwargs)
            params = layer.variables.get("params", {})
            if ROWS in params:
                return _extended(method, args[0], params["embedding"].shape[0], params[ROWS])
            if CHANGE not in params:
                return method(*args, **kwargs)
            out, change = method(*args, **kwargs), params[CHANGE]
            low = _to_low_rank(layer, args[0].astype(out.dtype), change.down.astype(out.dtype))
            high = low @ (change.scale * change.up).astype(out.dtype)
            if MAGNITUDE not in params:
                return out + high
            factor = (params[MAGNITUDE] / length(whole(params["kernel"]), change)).astype(out.dtype)
            bias = params["bias"].astype(out.dtype) if "bias" in params else 0
            return (out - bias + high) * factor + bias

        return intercept


def with_rows(params: Params, used: int, vectors: Sequence[np.ndarray]) -> Params:
    """Returns a text encoder's parameters with vectors [n, d] behind the `used` rows that its table has already.

    The rows are padded with zeros to a power of two, at least LEAST_ROWS, so that few programs are compiled. Raises
    ValueError for vectors of another width.
    """
    leaves = flatten_dict(params, sep="/")
    path = table_of(leaves)
    beside = f"{path.rpartition('/')[0]}/{ROWS}"
    table, rows = leaves[path], leaves.get(beside)
    for one in vectors:
        if one.ndim != 2 or one.shape[1] != table.shape[1]:
            raise ValueError(f"vectors of words are [n, {table.shape[1]}] for this model; got {list(one.shape)}")
    before = [] if rows is None else [np.asarray(rows, np.float32)[:used]]
    several = np.concatenate([*before, *(np.asarray(one, np.float32) for one in vectors)])  # NumPy: nothing to compile
    count = max(LEAST_ROWS, 1 << (len(several) - 1).bit_length())
    padded = np.pad(several, ((0, count - len(several)), (0, 0))).astype(table.dtype)
    return unflatten_dict({**leaves, beside: padded}, sep="/")


def table_of(paths: Iterable[str]) -> str:
    """Returns the path of the text encoder's table of embeddings, "" without one."""
    return next((path for path in paths if path.endswith(TABLES)), "")


def without_rows(params: Params) -> Params:
    """Returns the parameters of the networks without the vectors of added words."""
    return unflatten_dict({path: leaf for path, leaf in flatten_dict(params).items() if path[-1] != ROWS})


def length(kernel: Array, change: LowRank) -> Array:
    """Returns the length of each output's weights [d] in the changed kernel, as a constant of the gradient.

    Source: Liu et al. 2024 (arXiv 2402.09353), section 4.3.
    """
    base = kernel.astype(jnp.float32)
    return jax.lax.stop_gradient(lengths(base + change.difference(base)))


def _to_low_rank(layer: nn.Module, x: Array, down: Array) -> Array:
    if isinstance(layer, Conv):
        return convolution(x, down, strides=layer.strides, padding=layer.padding)
    return x @ down


def _extended(method: Callable[..., Any], ids: Array, count: int, rows: Array) -> Array:
    """Returns the embeddings of tokens, those from number `count` on from `rows`."""
    out = method(jnp.minimum(ids, count - 1))
    added = ids >= count
    return jnp.where(added[..., None], rows[jnp.where(added, ids - count, 0)].astype(out.dtype), out)
