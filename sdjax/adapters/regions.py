"""Regional prompts as patches: cross-attention to another prompt, and a LoRA, in a part of the picture."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from sdjax.adapters.ip_adapter import cut, shrunk
from sdjax.adapters.lora import ImageLoRA, LoRA, SharedLoRA
from sdjax.adapters.patch import Context, Interceptor, is_aside, path_of
from sdjax.adapters.spans import Sizes
from sdjax.typing import Timestep


@struct.dataclass
class RegionArrays:
    """The r regions of each picture of a batch.

    `contexts` [b, r, s, m, d] are their encoded prompts at s stages of sampling, with `lengths` [b, r, s] valid tokens.
    Stage k begins at the timestep `changes` [b, r, s] number k, the first at infinity. `masks` [b, r, h, w] are their
    weights at each place: 0 is outside.
    """

    contexts: Float[Array, "b r s m d"]
    lengths: Int[Array, "b r s"]
    changes: Float[Array, "b r s"]
    masks: Float[Array, "b r h w"]

    def at(self, t: Timestep) -> tuple[Float[Array, "b r m d"], Int[Array, "b r"]]:
        """Returns contexts and lengths at the timesteps t [b]."""
        stage = (t[:, None, None] <= self.changes).sum(-1)[..., None] - 1
        taken = jnp.take_along_axis(jnp.asarray(self.contexts), stage[..., None, None], axis=2)
        return taken[:, :, 0], jnp.take_along_axis(jnp.asarray(self.lengths), stage, axis=2)[..., 0]


@dataclasses.dataclass(frozen=True)
class Regions:
    """In the cross-attentions, each place attends to the prompts of its regions.

    The result is the mean of the attentions, weighted by the masks. The picture's own prompt has the weight that the
    masks leave to 1. Attention that another patch computes, such as to a picture, is not changed.
    """

    def cut(self, own: RegionArrays, rows: Array, columns: Array) -> RegionArrays:
        """Returns the per-image arrays of a window of the latent (`sdjax.diffusion.windows`)."""
        return dataclasses.replace(own, masks=cut(own.masks, rows, columns))

    def intercept(self, shared: None, own: RegionArrays) -> Interceptor:
        """Returns the interceptor of `.../attn2/to_k`, `to_v` and `attend`.

        The regions' tokens go through `to_k` and `to_v` behind the prompt's, so that patches there see them too.
        """
        sizes = Sizes()
        waiting: dict[str, Array] = {}  # keys and values of the regions [b, r m, width], by layer
        b, r, _, m, d = own.contexts.shape
        contexts: Array | None = None
        lengths: Array | None = None

        def intercept(
            method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: Context
        ) -> Any:
            nonlocal contexts, lengths
            path = path_of(context)
            sizes.see(path, args)
            if not path and not is_aside():
                contexts, lengths = own.at(args[1])
            attention, _, layer = path.rpartition("/")
            ours = attention.endswith("/attn2") and layer in ("to_k", "to_v", "attend")
            if not ours or len(args[0]) != b or is_aside():
                return method(*args, **kwargs)
            assert contexts is not None
            assert lengths is not None
            if layer != "attend":
                (text,) = args
                out = method(jnp.concatenate([text, contexts.reshape(b, r * m, d).astype(text.dtype)], axis=1))
                waiting[path] = out[:, text.shape[1] :]
                return out[:, : text.shape[1]]
            out = method(*args, **kwargs)
            if f"{attention}/to_k" not in waiting:
                return out
            q = args[0]
            keys, values = (
                waiting.pop(f"{attention}/{name}").reshape(b, r, m, *q.shape[2:]) for name in ("to_k", "to_v")
            )
            size = sizes.around(path)
            masks = shrunk(own.masks.reshape(b * r, *own.masks.shape[2:]), size).reshape(b, r, -1, 1, 1)
            rest = jnp.maximum(1 - masks.sum(1), 0)
            total = rest * out.astype(jnp.float32)
            for i in range(r):
                total += masks[:, i] * method(q, keys[:, i], values[:, i], lengths[:, i])
            return (total / (rest + masks.sum(1))).astype(out.dtype)

        return intercept


@struct.dataclass
class RegionLoRAArrays:
    """The adapters of one region of each picture, and its mask [b, h, w]."""

    lora: ImageLoRA
    mask: Float[Array, "b h w"]


@dataclasses.dataclass(frozen=True)
class RegionLoRA:
    """Adapters that work in region `number` of `count` only, each of `tokens` tokens. `Regions` must wrap it.

    What they add to a layer's output is multiplied by the mask. Among the tokens of prompts they change the region's.
    Layers without places, such as those of the timestep, stay as they are.
    """

    number: int
    count: int
    tokens: int

    def cut(self, own: RegionLoRAArrays, rows: Array, columns: Array) -> RegionLoRAArrays:
        """Returns the per-image arrays of a window of the latent (`sdjax.diffusion.windows`)."""
        return dataclasses.replace(own, mask=cut(own.mask, rows, columns))

    def intercept(self, shared: SharedLoRA | None, own: RegionLoRAArrays) -> Interceptor:
        """Returns the interceptor of all layers that the adapters change."""
        inner, sizes = LoRA().intercept(shared, own.lora), Sizes()
        mask = jnp.clip(own.mask, 0, 1)

        def intercept(
            method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: Context
        ) -> Any:
            path = path_of(context)
            sizes.see(path, args)
            if not path:
                return inner(method, args, kwargs, context)
            if is_aside():
                return method(*args, **kwargs)
            out = method(*args, **kwargs)
            changed = inner(lambda *_, **__: out, args, kwargs, context)
            if changed is out or out.ndim < 3:
                return out
            where = self._where(path, out, mask, sizes)
            return jnp.where(where == 0, out, (out + where * (changed - out)).astype(out.dtype))

        return intercept

    def _where(self, path: str, out: Array, mask: Array, sizes: Sizes) -> Array:
        """Returns the weights of the change at each place, or for each token of the prompts."""
        if out.ndim == 4:
            return shrunk(mask, (out.shape[1], out.shape[2]))[..., None]
        if not path.endswith(("/attn2/to_k", "/attn2/to_v")):
            return shrunk(mask, sizes.around(path)).reshape(len(out), -1, 1)
        first = out.shape[1] - (self.count - self.number) * self.tokens
        at = jnp.arange(out.shape[1])
        return ((at >= first) & (at < first + self.tokens))[None, :, None].astype(jnp.float32)
