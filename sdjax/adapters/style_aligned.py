"""StyleAligned: the pictures of a batch attend to a reference among them, and so get its style.

Source: Hertz et al. 2023, "Style Aligned Image Generation via Shared Attention" (arXiv 2312.02133), section 3.2.
"""

from dataclasses import dataclass

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from sdjax.adapters.patch import Interceptor
from sdjax.adapters.self_attention import Attend, self_attention
from sdjax.adapters.spans import Inside

EPSILON = 1e-5  # added to variances


@struct.dataclass
class Shares:
    """For each entry of the batch: `strength` [b], from 0 (as without the patch) to 1, and whether it is the reference.

    One picture is the reference. The entries of a picture are those of guidance's branches, in order.
    """

    strength: Float[Array, "b"]
    reference: Bool[Array, "b"]


@dataclass(frozen=True)
class StyleAligned:
    """Lets pictures attend to the reference too, in all self-attentions.

    Queries and keys get the reference's mean and deviation over places, channel by channel. Then the reference's keys
    and values stand before the picture's own. The result is mixed with the unchanged one by the strength. The reference
    stays as it is. Other patches may call an attention with some branches of all pictures, such as PAG's.
    """

    def intercept(self, shared: None, own: Shares) -> Interceptor:
        """Returns the interceptor of `.../attn1/attend`."""

        def changed(attend: Attend, qkv: tuple[Array, Array, Array], inside: Inside, path: str) -> Array:
            q, k, v = qkv
            at, strength = entries(own, len(q))
            keys = jnp.concatenate([k[at], aligned(k, k[at])], axis=1)
            together = attend(aligned(q, q[at]), keys, jnp.concatenate([v[at], v], axis=1))
            alone = attend(q, k, v)
            strength = strength.reshape(-1, 1, 1, 1)
            mixed = alone + strength.astype(alone.dtype) * (together - alone)
            return jnp.where(strength == 0, alone, mixed)

        return self_attention(changed)


def entries(own: Shares, count: int) -> tuple[Int[Array, "n"], Float[Array, "n"]]:
    """Returns the reference's entry in the same branch, and the strength, for `count` entries of an attention.

    The branches of a picture stand together: entry k i + j is picture i in branch j. An attention may be called with
    fewer branches than the network. The reference's strength is 0.
    """
    whole = own.reference.sum()  # the network's branches
    branches = jnp.maximum(count * whole // len(own.reference), 1)
    pictures, branch = jnp.divmod(jnp.arange(count), branches)
    first = jnp.argmax(own.reference)
    strength = jnp.where(own.reference, 0.0, own.strength)[pictures * whole]
    return first // jnp.maximum(whole, 1) * branches + branch, strength


def aligned(x: Float[Array, "b n h d"], reference: Float[Array, "b n h d"]) -> Float[Array, "b n h d"]:
    """Returns x with the reference's mean and standard deviation over places, in x's dtype (AdaIN)."""
    wide, like = x.astype(jnp.float32), reference.astype(jnp.float32)
    mean, deviation = _moments(wide)
    to_mean, to_deviation = _moments(like)
    return ((wide - mean) / deviation * to_deviation + to_mean).astype(x.dtype)


def _moments(x: Float[Array, "b n h d"]) -> tuple[Float[Array, "b 1 h d"], Float[Array, "b 1 h d"]]:
    return x.mean(1, keepdims=True), jnp.sqrt(x.var(1, keepdims=True) + EPSILON)
