"""Networks whose parameters stay in their file: a layer's are read when it runs, and let go afterwards.

    with streamed():
        prediction = UNet(config).apply({"params": stored(leaves)}, x, t, context)

Python runs the network and the sampler, layer by layer; only layers are compiled. So memory holds the activations and
the parameters of two layers, and every patch, sampler and rule of guidance works as it is. Each call of the network
reads all parameters again, which the system keeps in memory that is free.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array

from sdjax.adapters.patch import Context, Interceptor, bare, innermost
from sdjax.convert.containers.lazy import LazyTensor, aligned_copy
from sdjax.nn.layers.conv import Conv
from sdjax.nn.layers.dense import Dense
from sdjax.nn.layers.multihead import Attend
from sdjax.nn.layers.norm import GroupNorm, LayerNorm
from sdjax.nn.quantised.leaf import Quantised
from sdjax.typing import Params

LAYERS = (Conv, Dense, GroupNorm, LayerNorm, Attend, nn.Embed)  # each a program; the rest runs operation by operation


class StoredLeaf:
    """A parameter in its file. It is read whenever a layer uses it."""

    def __init__(self, tensor: LazyTensor) -> None:
        self.tensor = tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """The parameter's shape."""
        return self.tensor.shape

    @property
    def dtype(self) -> np.dtype:
        """The type that it has when it is read."""
        return self.tensor.dtype

    def read(self) -> np.ndarray | Quantised:
        """Returns the numbers: a quantised kernel as it is stored, else a copy as of `__array__`."""
        packed = self.tensor.packed
        if packed is None or packed.read is None:
            return np.asarray(self)
        leaf = packed.read().replace(dtype_name=self.dtype.name)
        self.tensor.release()
        return leaf

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Returns a copy of the numbers, row-major, at an address that JAX uses without copying them again."""
        array = aligned_copy(self.tensor.read())
        self.tensor.release()
        return array if dtype is None else array.astype(dtype)

    def __jax_array__(self) -> Array:
        """Returns the numbers on JAX's default device."""
        return jnp.asarray(np.asarray(self))

    def astype(self, dtype: DTypeLike, copy: bool = True) -> Array:
        """Returns the numbers in another type on JAX's default device."""
        return self.__jax_array__().astype(dtype)


def stored(leaves: Mapping[str, LazyTensor]) -> Params:
    """Returns tensors by path, "conv_in/kernel" for example, as Flax's nested tree of stored leaves."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *modules, name = path.split("/")
        place = functools.reduce(lambda node, module: node.setdefault(module, {}), modules, tree)
        place[name] = StoredLeaf(leaf)
    return tree


def in_memory(tree: Params) -> Params:
    """Returns the tree with the stored leaves read."""
    return jax.tree.map(lambda leaf: leaf.read() if isinstance(leaf, StoredLeaf) else leaf, tree)


class _Streamed:
    """A patch that runs every layer as a program that is given its parameters."""

    def __init__(self) -> None:
        self._before: Any = None

    def intercept(self, shared: None = None, own: None = None) -> Interceptor:
        """Returns the interceptor."""

        def intercept(
            method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: Context
        ) -> Any:
            layer = context.module
            if not isinstance(layer, LAYERS):
                return method(*args, **kwargs)
            params = in_memory(dict(layer.variables.get("params", {})))
            with jax.disable_jit(False), bare():
                out = run_layer(layer.clone(parent=None, name=None), params, args, kwargs)
            # One layer runs while the parameters of the next are read
            jax.block_until_ready(self._before)
            self._before = out
            return out

        return intercept


@functools.partial(jax.jit, static_argnums=0)
def run_layer(layer: nn.Module, params: Params, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Returns the output of a layer that stands alone, for its parameters and arguments."""
    return layer.apply({"params": params}, *args, **kwargs)


@contextlib.contextmanager
def streamed() -> Iterator[None]:
    """Returns a context in which networks run layer by layer, and read each layer's stored parameters then."""
    with jax.disable_jit(), innermost(_Streamed()):
        yield
