"""Reference-only: pictures attend to a reference picture inside the UNet, or get the statistics of its feature maps.

Source: the reference_only, reference_adain and reference_adain+attn preprocessors of sd-webui-controlnet (Zhang 2023,
Mikubill/sd-webui-controlnet, discussions 1236 and 1280). Which layers a weight reaches follows that extension as far as
we know it; its pictures were not compared.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float

from sdjax.adapters.patch import Context, Interceptor, aside
from sdjax.adapters.perturbed import self_attentions
from sdjax.adapters.spans import Inside
from sdjax.config import UNetConfig
from sdjax.typing import Map, NewMap, Timestep

Numbers: TypeAlias = Array | np.ndarray
Seen: TypeAlias = dict[str, tuple[Array, Array]]  # keys and values, or mean and variance, by layer
EPSILON = 1e-6  # the smallest variance of a feature map
LESS = 1e-6  # a layer is used if its number is below the weight by more than float32's rounding


@struct.dataclass
class ReferenceArrays:
    """One reference of each picture of a batch.

    `latent` [b, h, w, c] is the reference's, and `noise` that which it gets, of the same shape; `alphas_cumprod` [b, t]
    say how much at each timestep. `attention` and `norms` [b] are the weights with which self-attentions and feature
    maps use it; 0: not at all. `fidelity` [b], from 0 to 1: how much of the result stays as without it. It works
    at timesteps t with during[..., 0] >= t > during[..., 1], `during` [b, 2].
    """

    latent: Float[Numbers, "b h w c"]
    noise: Float[Numbers, "b h w c"]
    alphas_cumprod: Float[Numbers, "b t"]
    attention: Float[Numbers, "b"]
    norms: Float[Numbers, "b"]
    fidelity: Float[Numbers, "b"]
    during: Float[Numbers, "b 2"]

    def on(self, t: Timestep) -> Bool[Numbers, "b"]:
        """Returns whether it works at the timesteps t [b]."""
        return (self.during[:, 0] >= t) & (t > self.during[:, 1])

    def noised(self, x: Map, t: Timestep) -> Map:
        """Returns what the UNet gets for the reference in the place of x: the latent, as noisy as x at t [b].

        Channels behind the latent's stay, but a model for inpainting gets a reference in which nothing is masked.
        """
        c = self.latent.shape[-1]
        at = jnp.clip(jnp.round(t), 0, self.alphas_cumprod.shape[1] - 1).astype(jnp.int32)
        share = jnp.take_along_axis(jnp.asarray(self.alphas_cumprod), at[:, None], axis=1)[:, :, None, None]
        latent = jnp.sqrt(share) * self.latent + jnp.sqrt(1 - share) * self.noise
        rest = x[..., c:]
        if rest.shape[-1] == c + 1:  # mask and masked latent
            rest = jnp.concatenate([jnp.zeros_like(rest[..., :1]), jnp.asarray(self.latent, x.dtype)], axis=-1)
        return jnp.concatenate([latent.astype(x.dtype), rest], axis=-1)


@dataclasses.dataclass(frozen=True)
class References:
    """Calls the UNet for each reference, as noisy as the pictures, and uses what its layers compute there.

    Self-attentions attend to the reference's keys and values too. Feature maps get the mean and the deviation of the
    reference's over places, channel by channel (AdaIN). Layers are numbered (`attention_numbers`, `norm_numbers`), and
    those with a number below the weight are used. Results are mixed with the unchanged ones by the fidelity.

    The per-image arrays are a sequence of `ReferenceArrays`. The reference sees the same context and patches as the
    picture, except those of places in it (`sdjax.adapters.patch.aside`). An image with weights 0 stays as it is. The
    UNet is called for a reference only if some image needs it.
    """

    def cut(self, own: Sequence[ReferenceArrays], rows: Array, columns: Array) -> tuple[ReferenceArrays, ...]:
        """Returns the per-image arrays of a window of the latent (`sdjax.diffusion.windows`)."""

        def cut(x: Numbers) -> NewMap:
            return jnp.take(jnp.take(jnp.asarray(x), rows, axis=1), columns, axis=2)

        return tuple(dataclasses.replace(one, latent=cut(one.latent), noise=cut(one.noise)) for one in own)

    def intercept(self, shared: None, own: Sequence[ReferenceArrays]) -> Interceptor:
        """Returns the interceptor of the UNet itself, its self-attentions and blocks."""
        inside = Inside()
        recording: Seen | None = None  # while the UNet is called for a reference
        seen: list[Seen] = []  # of each reference
        b = len(own[0].latent)

        def look(one: ReferenceArrays, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Seen:
            """Returns what the layers compute for a reference."""
            nonlocal recording
            recording = {}
            x, t, *rest = args
            params = {"params": module.variables["params"]}
            with aside():
                module.clone(parent=None).apply(params, one.noised(x, t), t, *rest, **{**kwargs, "residuals": None})
            made, recording = recording, None
            return made

        def used(path: str, numbers: dict[str, float], weights: Sequence[Numbers]) -> Bool[Array, "r b"]:
            assert inside.t is not None
            return jnp.stack([one.on(inside.t) & (w > numbers[path] + LESS) for one, w in zip(own, weights)])

        def intercept(
            method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: Context
        ) -> Any:
            path = inside.see(args, context)
            assert inside.config is not None
            if not path and recording is None:
                seen[:] = []
                for one in own:
                    run = functools.partial(look, one, context.module, args, kwargs)
                    nothing = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(run))
                    needed = one.on(args[1]) & ((one.attention > 0) | (one.norms > 0))
                    seen.append(jax.lax.cond(jnp.any(needed), run, lambda nothing=nothing: nothing))
                return method(*args, **kwargs)
            attention, _, layer = path.rpartition("/")
            if layer == "attend" and inside.attends_to_itself(attention) and len(args[0]) == b:
                q, k, v = args[:3]
                if recording is not None:
                    recording[path] = (k, v)
                    return method(*args, **kwargs)
                on = used(attention, attention_numbers(inside.config), [one.attention for one in own])
                return mixed(method(q, k, v), joined(method, q, k, v, [one[path] for one in seen], on), own, on)
            out = method(*args, **kwargs)
            numbers = norm_numbers(inside.config)
            if path not in numbers:
                return out
            if recording is not None:
                recording[path] = _moments(out)
                return out
            on = used(path, numbers, [one.norms for one in own])
            return mixed(out, renormed(out, [one[path] for one in seen], on), own, on)

        return intercept


def mixed(alone: Array, changed: Array, own: Sequence[ReferenceArrays], on: Bool[Array, "r b"]) -> Array:
    """Returns fidelity * alone + (1 - fidelity) * changed, with the mean fidelity of the references that are `on`."""
    fidelity = jnp.stack([jnp.asarray(one.fidelity, jnp.float32) for one in own])
    share = (on * fidelity).sum(0) / jnp.maximum(on.sum(0), 1)
    share = jnp.where(on.any(0), share, 1).reshape(-1, *[1] * (alone.ndim - 1))
    both = (share * alone.astype(jnp.float32) + (1 - share) * changed.astype(jnp.float32)).astype(alone.dtype)
    return jnp.where(share == 1, alone, both)


def joined(
    method: Callable[..., Any],
    q: Array,
    k: Array,
    v: Array,
    seen: Sequence[tuple[Array, Array]],
    on: Bool[Array, "r b"],
) -> Array:
    """Returns the attention to an image's own keys [b, n, h, d] and those of its references that are `on`."""
    n = k.shape[1]
    order = jnp.argsort(~on, axis=0, stable=True)[:, :, None, None, None]  # those that are on first
    parts = [
        jnp.concatenate([mine, *jnp.take_along_axis(jnp.stack([one[i] for one in seen]), order, axis=0)], axis=1)
        for i, mine in enumerate((k, v))
    ]
    return method(q, *parts, (n + on.sum(0) * n).astype(jnp.int32))


def renormed(x: Map, seen: Sequence[tuple[Array, Array]], on: Bool[Array, "r b"]) -> Map:
    """Returns maps with the mean of the means and variances of the references that are `on`."""
    weights = (on / jnp.maximum(on.sum(0), 1))[:, :, None, None, None]
    to_mean, to_variance = ((weights * jnp.stack([one[i] for one in seen])).sum(0) for i in range(2))
    mean, variance = _moments(x)
    scale = jnp.sqrt(jnp.maximum(to_variance, EPSILON) / jnp.maximum(variance, EPSILON))
    return ((x.astype(jnp.float32) - mean) * scale + to_mean).astype(x.dtype)


def _moments(x: Map) -> tuple[Float[Array, "b 1 1 c"], Float[Array, "b 1 1 c"]]:
    """Returns mean and variance over places, float32."""
    wide = x.astype(jnp.float32)
    return wide.mean((1, 2), keepdims=True), wide.var((1, 2), keepdims=True)


@functools.cache
def attention_numbers(config: UNetConfig) -> dict[str, float]:
    """Returns the number of each self-attention, from 0 to below 1, by path: deeper levels first, then in order."""
    levels = len(config.channels)
    found: list[tuple[int, int, str]] = []  # -channels, place in the network, path
    for path in self_attentions(config):
        side, _, number = path.partition("/")[0].partition("_blocks_")
        middle = levels - 1
        level = {"down": int(number or 0), "up": levels - 1 - int(number or 0)}.get(side, middle)
        place = {"down": level, "up": 2 * levels - level}.get(side, levels)
        found.append((-config.channels[level], place, path))
    ordered = sorted(found, key=lambda one: one[:2])
    return {path: i / len(ordered) for i, (_, _, path) in enumerate(ordered)}


@functools.cache
def norm_numbers(config: UNetConfig) -> dict[str, float]:
    """Returns the number of each block whose map is renormed, from 0 to 2, by path: the middle first, then outwards.

    They are the middle block, the blocks of the encoder's levels but the first, and those of the decoder but the last
    ones: all of the first level, and the last of the second.
    """
    levels = range(len(config.channels))

    def blocks(side: str, i: int, level: int, count: int) -> list[str]:
        kind = "attentions" if config.heads[level] else "resnets"
        return [f"{side}_blocks_{i}/{kind}_{j}" for j in range(count)]

    down = [path for i in levels[1:] for path in blocks("down", i, i, config.num_res_blocks)]
    up: list[str] = []
    for i, level in enumerate(reversed(levels[1:])):
        up += blocks("up", i, level, config.num_res_blocks + 1)
        up[-1] = f"up_blocks_{i}/upsamplers_0"  # it is part of the last block
    out = {"mid_block": 0.0} if config.mid_block else {}
    out |= {path: 2 * (1 - i / len(down)) for i, path in enumerate(down)}
    return out | {path: 2 * i / len(up[:-1]) for i, path in enumerate(up[:-1])}
