"""NAG: normalised attention guidance, a negative prompt without a second pass of the network.

Source: Chen et al. 2025 (arXiv 2505.21179), eq. 7 to 10 and algorithm 1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from sdjax.adapters.patch import Context, Interceptor, path_of
from sdjax.adapters.perturbed import one_branch, with_branch, without_branch
from sdjax.typing import Context as TextContext
from sdjax.typing import Length


@struct.dataclass
class NAGArrays:
    """NAG's arrays for each image: three numbers, [b] each, and the negative prompt's context and its length."""

    scale: Array
    tau: Array
    alpha: Array
    context: TextContext
    context_length: Length | None


@dataclass(frozen=True)
class NAG:
    """In the cross-attentions of one branch, moves the attended values away from those for the negative prompt.

    Z is an attention's result before its output projection. Z = scale Z+ - (scale - 1) Z-, limited so that its L1 norm
    is at most tau times that of Z+; then alpha Z + (1 - alpha) Z+.
    """

    branches: int
    branch: int

    def intercept(self, shared: None, own: NAGArrays) -> Interceptor:
        """Returns the interceptor of the layers of `.../attn2`.

        The negative prompt's tokens go through `to_k` and `to_v` behind the prompt's, so that other patches there see
        the batch that they know.
        """
        negatives: dict[str, Array] = {}  # keys and values for the negative prompt, by layer

        def intercept(
            method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: Context
        ) -> Any:
            path = path_of(context)
            attention, _, layer = path.rpartition("/")
            if attention.rpartition("/")[2] != "attn2" or layer not in ("to_k", "to_v", "attend"):
                return method(*args, **kwargs)
            if layer != "attend":
                (text,) = args
                n, own_text = text.shape[1], own.context.astype(text.dtype)[:, None]
                before = jnp.zeros_like(own_text).repeat(self.branch, axis=1)
                after = jnp.zeros_like(own_text).repeat(self.branches - self.branch - 1, axis=1)
                apart = jnp.concatenate([before, own_text, after], axis=1)
                out = method(jnp.concatenate([text, apart.reshape(-1, *apart.shape[2:])], axis=1), **kwargs)
                negatives[path] = one_branch(out[:, n:], self.branches, self.branch)
                return out[:, :n]
            q, k, *_ = args
            z = method(*args, **kwargs)  # [b k, n, heads, size]
            keys, values = (
                negatives.pop(f"{attention}/{name}").reshape(len(own.context), -1, *k.shape[2:])
                for name in ("to_k", "to_v")
            )
            away = method(one_branch(q, self.branches, self.branch), keys, values, own.context_length)
            positive, negative = (
                a.reshape(*a.shape[:2], -1) for a in (one_branch(z, self.branches, self.branch), away)
            )
            guided = normalised(positive, negative, own).reshape(away.shape)
            if self.branches == 1:
                return guided
            return with_branch(without_branch(z, self.branches, self.branch), guided, self.branches, self.branch)

        return intercept


def normalised(
    positive: Float[Array, "b n d"], negative: Float[Array, "b n d"], own: NAGArrays
) -> Float[Array, "b n d"]:
    """Returns the guided result of an attention, in its dtype."""
    scale, tau, alpha = (a.astype(jnp.float32).reshape(-1, 1, 1) for a in (own.scale, own.tau, own.alpha))
    z, away = positive.astype(jnp.float32), negative.astype(jnp.float32)
    guided = scale * z - (scale - 1) * away
    norm, size = (abs(a).sum(-1, keepdims=True) for a in (z, guided))
    guided = jnp.where(size > tau * norm, guided * (tau * norm / (size + 1e-7)), guided)
    return (alpha * guided + (1 - alpha) * z).astype(positive.dtype)
