"""StyleAligned: the pictures of a batch attend to the first one, and so get its style.

Source: Hertz et al. 2023, "Style Aligned Image Generation via Shared Attention" (arXiv 2312.02133), section 3.2.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from sdjax.adapters.patch import Context, Interceptor
from sdjax.adapters.spans import Inside


@struct.dataclass
class Shares:
    """For each image: `strength` [b], from 0 (as without the patch) to 1, and the number of its picture [b].

    The picture with number 0 is the reference. The entries of one picture are those of guidance's branches, in order.
    """

    strength: Float[Array, "b"]
    picture: Int[Array, "b"]


@dataclass(frozen=True)
class StyleAligned:
    """Lets pictures attend to the reference too, in the self-attentions of the first `levels` levels; None: in all.

    Queries and keys get the reference's mean and deviation over places, channel by channel. Then the reference's keys
    and values stand before the picture's own. The result is mixed with the unchanged one by the strength. The reference
    stays as it is.
    """

    levels: int | None = None

    def intercept(self, shared: None, own: Shares) -> Interceptor:
        """Returns the interceptor of `.../attn1/attend`."""
        inside = Inside()

        def intercept(
            method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: Context
        ) -> Any:
            path = inside.see(args, context)
            attention, _, layer = path.rpartition("/")
            if layer != "attend" or not inside.attends_to_itself(attention):
                return method(*args, **kwargs)
            if self.levels is not None and not inside.at_level(path, self.levels):
                return method(*args, **kwargs)
            q, k, v = args[:3]
            at = references(own.picture)
            keys = jnp.concatenate([k[at], aligned(k, k[at])], axis=1)
            together = method(aligned(q, q[at]), keys, jnp.concatenate([v[at], v], axis=1))
            alone = method(*args, **kwargs)
            strength = jnp.where(own.picture == 0, 0.0, own.strength).reshape(-1, 1, 1, 1)
            mixed = alone + strength.astype(alone.dtype) * (together - alone)
            return jnp.where(strength == 0, alone, mixed)

        return intercept


def references(picture: Int[Array, "b"]) -> Int[Array, "b"]:
    """Returns the entry of the reference, in the same branch of guidance, for each entry of the batch.

    The branches of a picture stand together: entry k i + j is picture i in branch j.
    """
    first = jnp.argmax(picture == 0)
    branches = (picture == 0).sum()
    return first + (jnp.arange(len(picture)) - first) % jnp.maximum(branches, 1)


def aligned(x: Float[Array, "b n h d"], reference: Float[Array, "b n h d"]) -> Float[Array, "b n h d"]:
    """Returns x with the reference's mean and standard deviation over places, in x's dtype (AdaIN)."""
    wide, like = x.astype(jnp.float32), reference.astype(jnp.float32)
    mean, deviation = _moments(wide)
    to_mean, to_deviation = _moments(like)
    return ((wide - mean) / deviation * to_deviation + to_mean).astype(x.dtype)


def _moments(x: Float[Array, "b n h d"]) -> tuple[Float[Array, "b 1 h d"], Float[Array, "b 1 h d"]]:
    return x.mean(1, keepdims=True), jnp.sqrt(x.var(1, keepdims=True) + 1e-5)
