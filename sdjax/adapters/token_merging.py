"""Token merging (ToMe): attention over fewer places, by joining places that look alike. Faster, a little less exact.

Source: Bolya and Hoffman 2023, "Token Merging for Fast Stable Diffusion" (arXiv 2303.17604), sections 3 and 4.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from sdjax.adapters.patch import Context, Interceptor
from sdjax.adapters.spans import Inside, Run, check_levels, set_fields
from sdjax.checks.arguments import flag, number, whole
from sdjax.config import UNetConfig
from sdjax.typing import Timestep, Tokens

MOST_STRIDE = 16


@dataclass(frozen=True)
class TokenMerging:
    """The settings of token merging: the share `ratio` of places is joined to others before self-attention.

    It works in the first `levels` levels, which have the largest maps and cost the most. In each square of `stride` x
    `stride` places one is a target: with `random` another one in each call and for each seed, else the first. The
    places outside of them that are most similar to a target are averaged with it, and get its result. So at most the
    share 1 - 1 / stride^2 is joined. `cross_attention` and `feed_forward`: whether these layers get joined places too.
    Ratio 0 changes nothing.

    Raises ValueError for values out of range.
    """

    ratio: float = 0.5
    levels: int = 1
    stride: int = 2
    random: bool = True
    cross_attention: bool = False
    feed_forward: bool = False

    def __post_init__(self) -> None:
        stride = whole("stride", self.stride, 2, MOST_STRIDE)
        flags = {name: flag(name, getattr(self, name)) for name in ("random", "cross_attention", "feed_forward")}
        ratio = number("ratio", self.ratio, 0, 1 - 1 / stride**2, f" (with stride {stride})")
        set_fields(self, {"ratio": ratio, "levels": whole("levels", self.levels, 1), "stride": stride, **flags})

    @property
    def patch(self) -> "TokenMerging":
        """The static part: all of it."""
        return self

    def numbers(self, run: Run) -> Any:
        """Returns what targets of this picture are drawn with; None if they are not random."""
        return np.asarray(run.seed % 2**32, np.uint32) if self.random else None

    def check(self, config: UNetConfig) -> None:
        """Raises ValueError if the network does not have so many levels."""
        check_levels(self.levels, config)

    def intercept(self, shared: None, own: UInt32[Array, "b"] | None) -> Interceptor:
        """Returns the interceptor of transformer blocks and of their layers `attn1`, `attn2` and `ff`."""
        inside = Inside()
        joins: dict[str, Joins | None] = {}  # of each block

        def intercept(
            method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: Context
        ) -> Any:
            path = inside.see(args, context)
            block, _, layer = path.rpartition("/")
            if layer.startswith("transformer_blocks_") and inside.at_level(path, self.levels):
                joins[path] = self._joins(args[0], inside.sizes.around(path), inside.t, own)
            merged = joins.get(block)
            chosen = {
                "attn1": inside.attends_to_itself(path), "attn2": self.cross_attention, "ff": self.feed_forward
            }  # fmt: skip
            if merged is None or not chosen.get(layer):
                return method(*args, **kwargs)
            return unmerge(method(merge(args[0], merged), *args[1:], **kwargs), merged)

        return intercept

    def _joins(
        self, x: Tokens, size: tuple[int, int], t: Timestep | None, seeds: UInt32[Array, "b"] | None
    ) -> "Joins | None":
        """Returns the joins of a block's places; None if none are joined."""
        count = int(self.ratio * x.shape[1])
        if min(size) < self.stride or not count:
            return None
        assert t is not None
        places = (size[0] // self.stride) * (size[1] // self.stride)
        return match(x, targets(size, self.stride, len(x), t, seeds), places, count)


class Joins(NamedTuple):
    """Which places are joined. All are indices into the n places of a map, or into the targets."""

    kept: Int[Array, "b k"]  # places that stay as they are
    targets: Int[Array, "b m"]  # places that others are joined to
    joined: Int[Array, "b r"]  # places that are joined ...
    to: Int[Array, "b r"]  # ... and the number of the target of each


def targets(
    size: tuple[int, int], stride: int, b: int, t: Timestep, seeds: UInt32[Array, "b"] | None
) -> Bool[Array, "b n"]:
    """Returns which places of maps are targets: one in each square, chosen by seed and timestep, or the first."""
    height, width = size
    rows, columns = height // stride, width // stride

    def one(seed: Array, t: Array) -> Array:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), seed), t.astype(jnp.int32))
        return jax.random.randint(key, (rows, columns), 0, stride**2)

    chosen = jnp.zeros((b, rows, columns), jnp.int32) if seeds is None else jax.vmap(one)(seeds, t)
    number = jnp.arange(stride**2).reshape(stride, 1, stride)
    hit = (chosen[:, :, None, :, None] == number).reshape(b, stride * rows, stride * columns)
    return jnp.pad(hit, ((0, 0), (0, height % stride), (0, width % stride))).reshape(b, height * width)


def match(x: Tokens, is_target: Bool[Array, "b n"], m: int, count: int) -> Joins:
    """Returns the joins of the `count` places that are most similar (by cosine) to a target.

    `m` is the number of targets, which all stay.
    """
    n = x.shape[1]
    order = jnp.argsort(~is_target, axis=1, stable=True)
    of_target, others = order[:, :m], order[:, m:]
    unit = x.astype(jnp.float32)
    unit = unit / jnp.maximum(jnp.linalg.norm(unit, axis=-1, keepdims=True), 1e-12)
    alike = jnp.einsum("bnc,bmc->bnm", _taken(unit, others), _taken(unit, of_target))
    nearest, best = alike.argmax(-1), alike.max(-1)  # [b, n - m]
    ranks = jnp.argsort(-best, axis=1, stable=True)
    count = min(count, n - m)
    joined, kept = ranks[:, :count], ranks[:, count:]
    pick = jnp.take_along_axis
    return Joins(pick(others, kept, 1), of_target, pick(others, joined, 1), pick(nearest, joined, 1))


def merge(x: Tokens, joins: Joins) -> Float[Array, "b k c"]:
    """Returns the kept places, and then the targets, averaged with what is joined to them."""
    b, m = joins.targets.shape
    rows = jnp.arange(b)[:, None]
    sums = _taken(x, joins.targets).astype(jnp.float32)
    sums = sums.at[rows, joins.to].add(_taken(x, joins.joined).astype(jnp.float32))
    counts = jnp.ones((b, m)).at[rows, joins.to].add(1)
    means = (sums / counts[..., None]).astype(x.dtype)
    return jnp.concatenate([_taken(x, joins.kept), means], axis=1)


def unmerge(y: Float[Array, "b k c"], joins: Joins) -> Tokens:
    """Returns the results of all places. A joined place gets the result of its target."""
    b, k = joins.kept.shape
    at_targets = y[:, k:]
    order = jnp.concatenate([joins.kept, joins.targets, joins.joined], axis=1)
    results = jnp.concatenate([y, _taken(at_targets, joins.to)], axis=1)
    return jnp.zeros_like(results).at[jnp.arange(b)[:, None], order].set(results)


def _taken(x: Tokens, places: Int[Array, "b m"]) -> Float[Array, "b m c"]:
    return jnp.take_along_axis(x, places[..., None], axis=1)
