"""IP-Adapter as a patch: the UNet's cross-attentions also attend to pictures.

Source: Ye et al. 2023 (arXiv 2308.06721), eq. 5.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from sdjax.adapters.patch import Context, Interceptor, path_of
from sdjax.adapters.spans import Sizes
from sdjax.typing import Timestep


@struct.dataclass
class ImagePromptArrays:
    """One image prompt of each picture of a batch.

    `keys` and `values` [b, n, width] are those of its tokens, by the paths of the cross-attentions; `weights` [b] too.
    At timesteps t with during[0] >= t > during[1] it works. `mask` [b, h, w], from 0 to 1, says where in the picture;
    None: everywhere.
    """

    keys: dict[str, Array]
    values: dict[str, Array]
    weights: dict[str, Float[Array, "b"]]
    during: Float[Array, "b 2"]
    mask: Float[Array, "b h w"] | None = None


@dataclasses.dataclass(frozen=True)
class ImagePrompts:
    """Adds weight * mask * attention(queries, keys and values of the picture) to each cross-attention's result.

    It has no shared arrays. The per-image arrays are a sequence of ImagePromptArrays, whose terms are summed. With
    weight 0, and outside of its timesteps, an image is bit-identical to one without it. Attention that another patch
    computes for another batch, such as NAG's, does not look at the picture.
    """

    def cut(self, own: Sequence[ImagePromptArrays], rows: Array, columns: Array) -> list[ImagePromptArrays]:
        """Returns the per-image arrays of a window of the latent (`sdjax.diffusion.windows`)."""
        return [one if one.mask is None else dataclasses.replace(one, mask=cut(one.mask, rows, columns)) for one in own]

    def intercept(self, shared: None, own: Sequence[ImagePromptArrays]) -> Interceptor:
        """Returns the interceptor of the layers `.../attn2/attend`."""
        sizes = Sizes()
        t: Timestep | None = None

        def intercept(
            method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: Context
        ) -> Any:
            nonlocal t
            path = path_of(context)
            sizes.see(path, args)
            if not path:
                t = args[1]
            attention, _, layer = path.rpartition("/")
            if layer != "attend" or not attention.endswith("/attn2"):
                return method(*args, **kwargs)
            out = method(*args, **kwargs)
            q = args[0]
            assert t is not None
            for one in own:
                if attention in one.keys and len(q) == len(one.keys[attention]):
                    out = _added(method, out, q, t, one, attention, sizes.around(path))
            return out

        return intercept


def _added(
    method: Callable[..., Any], out: Array, q: Array, t: Timestep, own: ImagePromptArrays, attention: str,
    size: tuple[int, int],
) -> Array:  # fmt: skip
    """Returns an attention's result [b, n, heads, d] with the picture's part added."""
    keys, values = (a[attention].astype(q.dtype).reshape(len(q), -1, *q.shape[2:]) for a in (own.keys, own.values))
    seen = method(q, keys, values)
    active = (own.during[:, 0] >= t) & (t > own.during[:, 1])
    weight = jnp.where(active, own.weights[attention], 0).reshape(-1, 1, 1, 1)
    if own.mask is not None:
        weight = weight * shrunk(own.mask, size).reshape(len(q), -1, 1, 1)
    return jnp.where(weight == 0, out, out + (weight * seen).astype(out.dtype))


def cut(mask: Float[Array, "*b h w"], rows: Array, columns: Array) -> Float[Array, "*b m n"]:
    """Returns the part of masks with these rows and columns."""
    return jnp.take(jnp.take(jnp.asarray(mask), rows, axis=-2), columns, axis=-1)


def shrunk(mask: Float[Array, "b h w"], size: tuple[int, int]) -> Float[Array, "b _ _"]:
    """Returns masks at another size: means of what each place covers, linear between places where it grows."""
    return jax.image.resize(mask, (len(mask), *size), "linear", antialias=True)
