"""Hypernetworks of AUTOMATIC1111's web UI: small networks before the keys and values of every attention.

Source: the web UI's hypernetworks, modules/hypernetworks/hypernetwork.py of release 1.10.1, of which this keeps what a
trained file does.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from sdjax.adapters.patch import Context, Interceptor, path_of
from sdjax.typing import Timestep, Tokens

EPSILON = 1e-5  # of the norms

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "linear": lambda x: x,
    "relu": nn.relu,
    "leakyrelu": lambda x: nn.leaky_relu(x, 0.01),
    "rrelu": lambda x: nn.leaky_relu(x, (1 / 8 + 1 / 3) / 2),  # torch's mean slope, outside training
    "elu": nn.elu,
    "celu": nn.celu,
    "selu": nn.selu,
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "silu": nn.silu,
    "swish": nn.hard_swish,  # the web UI's "swish" is torch's Hardswish
    "hardswish": nn.hard_swish,
    "mish": lambda x: x * jnp.tanh(nn.softplus(x)),
    "tanh": jnp.tanh,
    "hardtanh": lambda x: jnp.clip(x, -1, 1),
    "tanhshrink": lambda x: x - jnp.tanh(x),
    "sigmoid": nn.sigmoid,
    "hardsigmoid": nn.hard_sigmoid,
    "logsigmoid": nn.log_sigmoid,
    "relu6": nn.relu6,
    "softplus": nn.softplus,
    "softsign": nn.soft_sign,
    "softshrink": lambda x: jnp.sign(x) * jnp.maximum(abs(x) - 0.5, 0),
    "hardshrink": lambda x: jnp.where(abs(x) > 0.5, x, 0),
}


@struct.dataclass
class Layer:
    """A linear layer, kernel [c, d], then the activation (`is_activated`), then a norm if there are scale and shift."""

    kernel: Array
    bias: Array
    scale: Array | None = None
    shift: Array | None = None
    is_activated: bool = struct.field(pytree_node=False, default=False)


@struct.dataclass
class Hypernetwork:
    """The layers before `to_k` and before `to_v`, by the width of what these take; and the activation's name."""

    layers: dict[int, tuple[tuple[Layer, ...], tuple[Layer, ...]]]
    activation: str = struct.field(pytree_node=False, default="linear")

    def change(self, x: Tokens, which: int) -> Tokens | None:
        """Returns what is added at strength 1 to x before to_k (0) or to_v (1); None for widths without layers."""
        if x.shape[-1] not in self.layers:
            return None
        y = x
        for layer in self.layers[x.shape[-1]][which]:
            y = y @ layer.kernel.astype(y.dtype) + layer.bias.astype(y.dtype)
            if layer.is_activated:
                y = ACTIVATIONS[self.activation](y)
            if layer.scale is not None and layer.shift is not None:
                y = _normalised(y, layer.scale, layer.shift)
        return y.astype(x.dtype)


def _normalised(x: Array, scale: Array, shift: Array) -> Array:
    wide = x.astype(jnp.float32)
    mean = wide.mean(-1, keepdims=True)
    variance = ((wide - mean) ** 2).mean(-1, keepdims=True)
    return ((wide - mean) * jax.lax.rsqrt(variance + EPSILON) * scale + shift).astype(x.dtype)


@struct.dataclass
class Strengths:
    """The strengths of k hypernetworks in a batch of b images, [b, k].

    `during` [b, k, 2]: a network works at timesteps t with during[..., 0] >= t > during[..., 1]; None means at all.
    """

    strength: Float[Array, "b k"]
    during: Float[Array, "b k 2"] | None = None

    def at(self, t: Timestep) -> Float[Array, "b k"]:
        """Returns the strengths at the timesteps t [b]."""
        if self.during is None:
            return self.strength
        first, last = self.during[..., 0], self.during[..., 1]
        return jnp.where((first >= t[:, None]) & (t[:, None] > last), self.strength, 0)


@dataclasses.dataclass(frozen=True)
class Hypernetworks:
    """Changes the inputs of every attention's `to_k` and `to_v`: x becomes x + strength net(x), net after net.

    The shared arrays are the networks, a tuple of Hypernetwork. The per-image arrays are `Strengths`; with strength 0
    an image is bit-identical to one without the network.
    """

    def intercept(self, shared: tuple[Hypernetwork, ...], own: Strengths) -> Interceptor:
        """Returns the interceptor of the layers `.../to_k` and `.../to_v`."""
        strengths = own.strength

        def intercept(
            method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: Context
        ) -> Any:
            nonlocal strengths
            path = path_of(context)
            if not path:
                strengths = own.at(args[1])
            name = path.rpartition("/")[2]
            if name not in ("to_k", "to_v"):
                return method(*args, **kwargs)
            x, *rest = args
            for i, net in enumerate(shared):
                change = net.change(x, ("to_k", "to_v").index(name))
                if change is not None:
                    strength = strengths[:, i].astype(x.dtype).reshape(-1, 1, 1)
                    x = x + jnp.where(strength == 0, 0, strength * change)
            return method(x, *rest, **kwargs)

        return intercept
