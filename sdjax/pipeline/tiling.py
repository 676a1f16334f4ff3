"""The autoencoder band by band: decoder and encoder make the same numbers in less memory.

Separately decoded tiles are visible: every GroupNorm sees only the statistics of its tile, so neighbouring tiles differ
in brightness and contrast. Blending their edges only hides it. Here the layers are cut into bands, not the picture. A
layer's convolution runs over bands of rows, each with one row of its neighbours above and below. Its input, normalised
by the statistics of the whole map, exists only for one band at a time. So all numbers are the same as without bands,
except for the rounding of sums. At worst the input, the output and the shortcut of a residual block are in memory;
without bands XLA also keeps float32 copies.

The middle block processes the whole map at once. Its attention never stores the score matrix
(`sdjax.nn.layers.attention`).

The encoder works in the same way: its blocks before the middle block run in bands, and each downsampling too.

The network is that of `sdjax.nn.vae`; a patch replaces its layers.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from sdjax.adapters.patch import Context, Interceptor, Patch, patched, path_of
from sdjax.adapters.seamless import Seamless
from sdjax.config import VAEConfig
from sdjax.nn.layers.conv import POINT, conv2d
from sdjax.nn.layers.norm import GroupNorm
from sdjax.nn.layers.resnet import Downsample, Resnet, Upsample
from sdjax.nn.vae import AutoencoderKL
from sdjax.typing import Image, Latent, Moments, NewImage, NewMap, Params

BAND = 2**23  # numbers of a map in one band: 32 MiB in float32, enough to keep a device busy
PATCHED = ("decoder/up_blocks_", "decoder/conv_norm_out", "decoder/conv_out", "encoder/down_blocks_")
LARGE = 2**20  # pictures with more pixels (above 1024 x 1024) are encoded and decoded band by band

Map = Float[Array, "b h w c"]


@dataclasses.dataclass(frozen=True)
class Norm:
    """A GroupNorm with known statistics: one of each per channel, float32 [b, 1, 1, c]."""

    mean: jax.Array
    factor: jax.Array  # scale over standard deviation
    bias: jax.Array

    def __call__(self, x: Map) -> Map:
        """Returns silu of the normalised x, in x's dtype."""
        return jax.nn.silu(((x.astype(jnp.float32) - self.mean) * self.factor + self.bias).astype(x.dtype))


@dataclasses.dataclass(frozen=True)
class Pending:
    """A map that will be normalised later, band by band, where it is used."""

    x: Map
    norm: Norm


@dataclasses.dataclass(frozen=True)
class Banded:
    """A patch of the autoencoder: the blocks outside the middle blocks work in bands of about `band` numbers.

    Its convolutions wrap around along the axes of `seamless` ("", "x", "y", "xy"). The patch `Seamless` does this for
    the other layers.
    """

    band: int
    seamless: str = ""

    def intercept(self, shared: None = None, own: None = None) -> Interceptor:
        """Returns the interceptor of residual blocks, upsampling, downsampling and the output."""

        def intercept(
            method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: Context
        ) -> Any:
            layer, path = context.module, path_of(context)
            if not path.startswith(PATCHED):
                return method(*args, **kwargs)
            x, params = args[0], layer.variables["params"]
            if isinstance(layer, Resnet):
                return _resnet(x, layer, params, self.band, self.seamless)
            if isinstance(layer, Upsample):
                weights = _weights(params["conv"], layer.dtype)
                return convolve(x, *weights, band=self.band, double=True, seamless=self.seamless)
            if isinstance(layer, Downsample):
                return halve(x, *_weights(params["conv"], layer.dtype), band=self.band)
            if isinstance(layer, GroupNorm):
                return Pending(x, norm_of(x, layer, params, self.band))
            if isinstance(x, Pending):
                weights = _weights(params, layer.dtype)
                return convolve(x.x, *weights, band=self.band, prepare=x.norm, seamless=self.seamless)
            return method(*args, **kwargs)

        return intercept


def decode(
    config: VAEConfig, dtype: DTypeLike, params: Params, latent: Latent, *, band: int = BAND, seamless: str = ""
) -> NewImage:
    """Returns the same images of latents as `AutoencoderKL.decode`, float32, in bands of about `band` numbers.

    `params` are the autoencoder's. Use it for one latent at a time: in a batch, a band has the rows of all its images.
    `seamless` are the axes along which convolutions wrap around.
    """
    with patched(_patches(band, seamless)):
        return AutoencoderKL(config, dtype).bind({"params": params}).decode(latent)


def encode(
    config: VAEConfig, dtype: DTypeLike, params: Params, image: Image, *, band: int = BAND, seamless: str = ""
) -> Moments:
    """Returns the same moments of images as `AutoencoderKL.encode`, float32, in bands; see `decode`."""
    with patched(_patches(band, seamless)):
        return AutoencoderKL(config, dtype).bind({"params": params}).encode(image)


def _patches(band: int, seamless: str) -> list[Patch]:
    banded = Banded(band, seamless)
    return [Seamless(seamless), banded] if seamless else [banded]


def _resnet(x: Map, layer: Resnet, params: Params, band: int, seamless: str) -> NewMap:
    """Returns the output of a residual block. At most x, its shortcut and one map in between are in memory."""
    norm = norm_of(x, layer, params["norm1"], band)
    y = convolve(x, *_weights(params["conv1"], layer.dtype), band=band, prepare=norm, seamless=seamless)
    if "conv_shortcut" in params:
        x = convolve(x, *_weights(params["conv_shortcut"], layer.dtype), band=band)
    norm = norm_of(y, layer, params["norm2"], band)
    weights = _weights(params["conv2"], layer.dtype)
    return convolve(y, *weights, band=band, prepare=norm, onto=x, seamless=seamless)


def _weights(params: Params, dtype: DTypeLike) -> tuple[jax.Array, jax.Array]:
    return params["kernel"].astype(dtype), params["bias"].astype(dtype)


def norm_of(x: Map, layer: GroupNorm | Resnet, params: Params, band: int = BAND) -> Norm:
    """Returns the GroupNorm of x with its statistics over the whole map, gathered band by band in float32.

    `layer` has the number of groups and the epsilon. `params` are those of the norm.

    Each band has its mean and its sum of squared differences from this mean. They are combined exactly (Chan, Golub
    and LeVeque 1983, eq. 2.1). This avoids long sums, and small differences of large sums.
    """
    b, h, w, c = x.shape
    groups = layer.groups
    count = _bands(x.shape, band)
    rows = h // count

    def moments(i: jax.Array) -> tuple[jax.Array, jax.Array]:
        y = jax.lax.dynamic_slice_in_dim(x, i * rows, rows, axis=1).astype(jnp.float32)
        y = y.reshape(b, rows * w, groups, c // groups)
        mean = y.mean((1, 3))
        return mean, jnp.square(y - mean[:, None, :, None]).sum((1, 3))  # [b, groups] each

    means, squares = jax.lax.map(moments, jnp.arange(count))
    mean = means.mean(0)
    size = rows * w * (c // groups)
    variance = (squares.sum(0) + size * jnp.square(means - mean).sum(0)) / (count * size)
    scale, bias = (params[name].astype(jnp.float32) for name in ("scale", "bias"))
    to_channels = lambda a: jnp.repeat(a, c // groups, axis=-1)[:, None, None]  # noqa: E731
    return Norm(
        to_channels(mean), to_channels(jax.lax.rsqrt(variance + layer.epsilon)) * scale, jnp.broadcast_to(bias, c)
    )


def convolve(
    x: Map, kernel: jax.Array, bias: jax.Array, *, band: int = BAND, prepare: Callable[[Map], Map] | Norm = lambda x: x,
    double: bool = False, onto: NewMap | None = None, seamless: str = "",
) -> NewMap:  # fmt: skip
    """Returns the convolution of prepare(x), band by band: 3x3 with one pixel of zero padding, or 1x1.

    `prepare` is a function of each pixel alone. `double` first doubles every pixel along both axes. The result is added
    to `onto`, in its memory. Along the axes of `seamless` it wraps around instead of padding with zeros.
    """
    _, h, w, _ = x.shape
    times = 2 if double else 1
    count = _bands((1, h, times * w, times * max(kernel.shape[2:])), band)
    rows = h // count

    def one(i: jax.Array) -> Map:
        first = i * rows
        inside = prepare(jax.lax.dynamic_slice_in_dim(x, first, rows, axis=1))
        if double:
            inside = jnp.repeat(jnp.repeat(inside, 2, axis=1), 2, axis=2)
        if kernel.shape[0] == 1:
            return conv2d(inside, kernel, bias, padding=POINT)
        # One row of each neighbour
        above = prepare(jax.lax.dynamic_slice_in_dim(x, (first - 1) % h, 1, axis=1))
        below = prepare(jax.lax.dynamic_slice_in_dim(x, (first + rows) % h, 1, axis=1))
        if "y" not in seamless:  # outside the map there are zeros, to which `prepare` is not applied
            above, below = jnp.where(i > 0, above, 0), jnp.where(i < count - 1, below, 0)
        if double:
            above, below = jnp.repeat(above, 2, axis=2), jnp.repeat(below, 2, axis=2)
        part, sides = jnp.concatenate([above, inside, below], axis=1), (1, 1)
        if "x" in seamless:
            part, sides = jnp.pad(part, ((0, 0), (0, 0), (1, 1), (0, 0)), mode="wrap"), (0, 0)
        return conv2d(part, kernel, bias, padding=((0, 0), sides))

    out = onto
    if out is None:
        # All of it is overwritten. It starts from numbers of this layer, so that XLA does not allocate it before x
        # exists, and does not share it between layers by copies
        out = jnp.full((x.shape[0], times * h, times * w, kernel.shape[-1]), x[0, 0, 0, 0] + bias[0])

    def put(i: jax.Array, out: Map) -> Map:
        first, size = i * rows * times, rows * times
        y = one(i)
        if onto is not None:
            y = jax.lax.dynamic_slice_in_dim(out, first, size, axis=1) + y
        return jax.lax.dynamic_update_slice_in_dim(out, y, first, axis=1)

    return jax.lax.fori_loop(0, count, put, out)


def halve(x: Map, kernel: jax.Array, bias: jax.Array, *, band: int = BAND) -> NewMap:
    """Returns the encoder's downsampling, band by band: 3x3, stride 2, one zero at the right and at the bottom.

    Raises ValueError for a map with an odd side.
    """
    b, h, w, _ = x.shape
    if h % 2 or w % 2:
        raise ValueError(f"a map to halve has even sides; got {h} x {w}")
    count = _bands((1, h // 2, 2 * w, max(kernel.shape[2:])), band)
    rows = h // 2 // count

    def put(i: jax.Array, out: Map) -> Map:
        first = 2 * i * rows
        inside = jax.lax.dynamic_slice_in_dim(x, first, 2 * rows, axis=1)
        below = jax.lax.dynamic_slice_in_dim(x, (first + 2 * rows) % h, 1, axis=1)
        part = jnp.concatenate([inside, jnp.where(i < count - 1, below, 0)], axis=1)
        y = conv2d(part, kernel, bias, strides=(2, 2), padding=((0, 0), (0, 1)))
        return jax.lax.dynamic_update_slice_in_dim(out, y, i * rows, axis=1)

    out = jnp.full((b, h // 2, w // 2, kernel.shape[-1]), x[0, 0, 0, 0] + bias[0])
    return jax.lax.fori_loop(0, count, put, out)


def _bands(shape: tuple[int, ...], band: int) -> int:
    """Returns the number of bands of equal height: each has at most `band` numbers, but at least one row."""
    _, h, w, c = shape
    return next(count for count in range(1, h + 1) if h % count == 0 and (h // count * w * c <= band or count == h))
