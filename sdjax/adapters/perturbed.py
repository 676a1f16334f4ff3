"""Changes of self-attention in one branch of guidance: PAG and SEG, and the map that SAG looks at.

The network's batch holds the branches interleaved: entry k i + j is image i of branch j. The other branches are
computed as without the patch.

Source: Ahn et al. 2024 (arXiv 2403.17377) for PAG; Hong 2024 (arXiv 2408.00760) for SEG; Hong et al. 2022
(arXiv 2210.00939) for SAG.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sdjax.adapters.patch import Context, Interceptor, path_of, report
from sdjax.adapters.spans import Sizes
from sdjax.config import UNetConfig

INFINITE = 9999.0  # from this standard deviation on, a blur is the mean over the whole map
MIDDLE = "mid_block/attentions_0/transformer_blocks_0/attn1/attend"


@dataclass(frozen=True)
class PerturbedAttention:
    """Changes the chosen self-attentions of one branch of guidance.

    Without per-image arrays every query attends to itself alone: the attention's output is its values (PAG). With one
    number [b] for each image, queries are blurred over the map with that standard deviation (SEG). `layers` are regular
    expressions, divided by commas, for names as diffusers has them (`diffusers_name`).
    """

    layers: str
    branches: int
    branch: int

    def intercept(self, shared: None, own: Float[Array, "b"] | None) -> Interceptor:
        """Returns the interceptor of `.../attn1/attend`."""
        sizes = Sizes()

        def intercept(
            method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: Context
        ) -> Any:
            path = path_of(context)
            sizes.see(path, args)
            if not path.endswith("/attn1/attend") or not chosen(self.layers, path) or not _is_self(args):
                return method(*args, **kwargs)
            q, k, v = (one_branch(a, self.branches, self.branch) for a in args[:3])
            if own is None:
                out = v
            else:
                b, n, heads, d = q.shape
                h, w = sizes.around(path)
                q = blurred(q.reshape(b, h, w, heads * d), own).reshape(b, n, heads, d)
                out = method(q, k, v)
            if self.branches == 1:
                return out
            others = [without_branch(a, self.branches, self.branch) for a in args[:3]]
            return with_branch(method(*others), out, self.branches, self.branch)

        return intercept


@dataclass(frozen=True)
class AttentionMap:
    """Reports how much each place of the middle block's map is attended to, "attention" [b, h, w], in one branch.

    It is the mean over heads of the attention, summed over queries: 1 on average.
    """

    branches: int
    branch: int

    def intercept(self, shared: None, own: None) -> Interceptor:
        """Returns the interceptor of the middle block's first self-attention."""
        sizes = Sizes()

        def intercept(
            method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: Context
        ) -> Any:
            path = path_of(context)
            sizes.see(path, args)
            if path == MIDDLE:
                q, k = (one_branch(a, self.branches, self.branch).astype(jnp.float32) for a in args[:2])
                logits = jnp.einsum("bnhd,bmhd->bhnm", q, k, precision=jax.lax.Precision.HIGHEST)
                attention = jax.nn.softmax(logits * q.shape[-1] ** -0.5, axis=-1).mean(1).sum(1)  # [b, m]
                report("attention", attention.reshape(-1, *sizes.around(path)))
            return method(*args, **kwargs)

        return intercept


def one_branch(a: Array, branches: int, branch: int) -> Array:
    """Returns the entries of one branch, [b, ...], of an array [b * branches, ...]."""
    return a.reshape(-1, branches, *a.shape[1:])[:, branch]


def without_branch(a: Array, branches: int, branch: int) -> Array:
    """Returns the entries of the other branches, [b * (branches - 1), ...]."""
    apart = a.reshape(-1, branches, *a.shape[1:])
    rest = jnp.concatenate([apart[:, :branch], apart[:, branch + 1 :]], axis=1)
    return rest.reshape(-1, *a.shape[1:])


def with_branch(a: Array, one: Array, branches: int, branch: int) -> Array:
    """Returns the entries of all branches: those of `without_branch`, and those of one branch."""
    apart = a.reshape(-1, branches - 1, *a.shape[1:])
    whole = jnp.concatenate([apart[:, :branch], one[:, None], apart[:, branch:]], axis=1)
    return whole.reshape(-1, *a.shape[1:])


def diffusers_name(path: str) -> str:
    """Returns the name of a layer in diffusers: "mid_block.attentions.0" for "mid_block/attentions_0"."""
    return re.sub(r"_(\d+)(?=/|$)", r".\1", path).replace("/", ".")


def chosen(layers: str, path: str) -> bool:
    """Returns whether one of the regular expressions, divided by commas, is found in the layer's name in diffusers."""
    name = diffusers_name(path.removesuffix("/attend"))
    return any(re.search(one, name) for one in layers.split(","))


def self_attentions(config: UNetConfig) -> list[str]:
    """Returns the paths of a UNet's self-attentions."""
    return [f"{path}/attn1" for path, _, own in transformers(config) if own]


def transformers(config: UNetConfig) -> list[tuple[str, int, bool]]:
    """Returns path, level, and whether the first attention is to itself, of each transformer block of a UNet."""
    levels = range(len(config.channels))
    last = levels[-1]
    middle = ("mid_block", config.mid_heads, config.transformer_depth[-1], config.mid_self_attention, 1, last)
    blocks = [middle] if config.mid_block else []
    for i in levels:
        level = config.heads[i], config.transformer_depth[i], config.self_attention[i]
        blocks.append((f"down_blocks_{i}", *level, config.num_res_blocks, i))
        blocks.append((f"up_blocks_{last - i}", *level, config.num_res_blocks + 1, i))
    return [
        (f"{name}/attentions_{j}/transformer_blocks_{k}", level_number, own)
        for name, heads, depth, own, count, level_number in blocks
        if heads
        for j in range(count)
        for k in range(depth)
    ]


def blurred(x: Float[Array, "b h w c"], sigma: Float[Array, "b"], half: int | None = None) -> Float[Array, "b h w c"]:
    """Returns the maps, blurred by a Gaussian with the standard deviation `sigma`, in x's dtype.

    Borders are reflected. The kernel has `half` entries to each side; None means 3 sigma, at most half of the map. From
    INFINITE on it is the mean over the map.
    """
    sigma = jnp.maximum(sigma.astype(jnp.float32), 1e-3)
    wide = x.astype(jnp.float32)
    exact = jax.lax.Precision.HIGHEST
    out = jnp.einsum("bij,bjwc->biwc", _kernel(x.shape[1], sigma, half), wide, precision=exact)
    out = jnp.einsum("bij,bhjc->bhic", _kernel(x.shape[2], sigma, half), out, precision=exact)
    if half is None:
        far = (sigma >= INFINITE).reshape(-1, 1, 1, 1)
        out = jnp.where(far, wide.mean((1, 2), keepdims=True), out)
    return out.astype(x.dtype)


def _kernel(n: int, sigma: Float[Array, "b"], half: int | None) -> Float[Array, "b n n"]:
    """Returns the blur along an axis of n entries as a matrix for each image."""
    reach = min(n // 2 if half is None else half, n - 1)
    far = jnp.arange(-reach, reach + 1)
    weights = jnp.exp(-0.5 * (far / sigma[:, None]) ** 2)
    if half is None:
        # The kernel has ceil(6 sigma) entries, and one more if that is even
        weights = weights * (abs(far) <= jnp.ceil(6 * sigma[:, None]) // 2)
    weights = weights / weights.sum(-1, keepdims=True)
    row = jnp.arange(n)[:, None]
    at = abs(row + far)
    at = jnp.where(at > n - 1, 2 * (n - 1) - at, at)
    return jnp.zeros((len(sigma), n, n)).at[:, row, at].add(weights[:, None, :])


def mask_of(attention: Float[Array, "b h w"], height: int, width: int) -> Float[Array, "b y x 1"]:
    """Returns where the attention is above its average of 1, as 1 or 0, enlarged to height x width (nearest)."""
    _, h, w = attention.shape
    rows, columns = (
        jnp.asarray([i * small // large for i in range(large)]) for small, large in ((h, height), (w, width))
    )
    return (attention > 1.0).astype(jnp.float32)[:, rows][:, :, columns, None]


def _is_self(args: tuple[Any, ...]) -> bool:
    """Returns whether an attention's keys are its own tokens: no hidden keys, and as many as queries."""
    return (len(args) < 4 or args[3] is None) and args[0].shape == args[1].shape
