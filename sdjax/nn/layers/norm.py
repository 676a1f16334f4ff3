"""Normalisations. Statistics are always float32, and the variance is computed in two passes.

Source: torch.nn.GroupNorm and torch.nn.LayerNorm (biased variance, epsilon inside the square root).
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from sdjax.nn.layers import rows


class GroupNorm(nn.Module):
    """Normalises every group of neighbouring channels over all positions, then scales and shifts each channel.

    `silu` applies SiLU to the result, in `dtype`.
    """

    groups: int
    epsilon: float
    dtype: DTypeLike = jnp.float32
    silu: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b *s c"]) -> Float[Array, "b *s c"]:
        c = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (c,))
        bias = self.param("bias", nn.initializers.zeros, (c,))
        y = group_norm(x, scale, bias, groups=self.groups, epsilon=self.epsilon).astype(self.dtype)
        return jax.nn.silu(y) if self.silu else y


class LayerNorm(nn.Module):
    """Normalises the last axis, then scales and shifts each channel."""

    epsilon: float = 1e-5
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "... c"]) -> Float[Array, "... c"]:
        c = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (c,))
        bias = self.param("bias", nn.initializers.zeros, (c,))
        return layer_norm(x, scale, bias, epsilon=self.epsilon).astype(self.dtype)


class BatchNorm(nn.Module):
    """Normalises every channel with the running mean and variance of the training, then scales and shifts it."""

    epsilon: float

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        shape = (x.shape[-1],)
        scale, bias = self.param("scale", nn.initializers.ones, shape), self.param("bias", nn.initializers.zeros, shape)
        mean = self.param("running_mean", nn.initializers.zeros, shape)
        variance = self.param("running_var", nn.initializers.ones, shape)
        return (x - mean) * (scale * jax.lax.rsqrt(variance + self.epsilon)) + bias


def group_norm(x: Array, scale: Array, bias: Array, *, groups: int, epsilon: float) -> Array:
    """Returns x with zero mean and unit variance in every group of channels, times scale plus bias, float32.

    Raises ValueError if the channels do not divide into groups.
    """
    c = x.shape[-1]
    if c % groups:
        raise ValueError(f"group norm: {c} channels do not divide into {groups} groups")
    mesh = rows.current()
    normalise = functools.partial(_normalised, groups=groups, epsilon=epsilon)
    if mesh is None or x.ndim != 4:
        return normalise(x, scale, bias)
    fits = x.shape[1] % mesh.shape[rows.ROWS] == 0
    own = P(rows.batch_axis(mesh, len(x)), *[rows.ROWS] * fits)
    return rows.in_parts(functools.partial(normalise, joined=fits), mesh, (own, P(), P()), own)(x, scale, bias)


def _normalised(x: Array, scale: Array, bias: Array, *, groups: int, epsilon: float, joined: bool = False) -> Array:
    """Returns the normalised x. If it is `joined`, it is a part of the rows, and the statistics are those of all.

    Means and variances of parts of equal size are joined exactly (Chan, Golub and LeVeque 1983, eq. 2.1).
    """
    b, *_, c = x.shape
    y = x.astype(jnp.float32).reshape(b, -1, groups, c // groups)
    mean = y.mean((1, 3), keepdims=True)
    var = jnp.square(y - mean).mean((1, 3), keepdims=True)
    if joined:
        means, variances = jnp.moveaxis(jax.lax.all_gather(jnp.stack([mean, var]), rows.ROWS), 1, 0)
        mean = means.mean(0)
        var = variances.mean(0) + jnp.square(means - mean).mean(0)
    scale, bias = (a.astype(jnp.float32).reshape(groups, c // groups) for a in (scale, bias))
    return ((y - mean) * (jax.lax.rsqrt(var + epsilon) * scale) + bias).reshape(x.shape)


def layer_norm(x: Array, scale: Array, bias: Array, *, epsilon: float) -> Array:
    """Returns x with zero mean and unit variance along the last axis, times scale plus bias, float32."""
    y = x.astype(jnp.float32)
    mean = y.mean(-1, keepdims=True)
    var = jnp.square(y - mean).mean(-1, keepdims=True)
    return (y - mean) * jax.lax.rsqrt(var + epsilon) * scale.astype(jnp.float32) + bias.astype(jnp.float32)
