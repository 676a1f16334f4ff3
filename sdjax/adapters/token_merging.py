"""Token merging (ToMe): attention over fewer places, by joining places that look alike. Faster, a little less exact.

Source: Bolya and Hoffman 2023, "Token Merging for Fast Stable Diffusion" (arXiv 2303.17604), sections 3 and 4.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sdjax.adapters.patch import Context, Interceptor
from sdjax.adapters.spans import AsItIs, Inside, check_levels, set_fields
from sdjax.checks.arguments import number, whole
from sdjax.config import UNetConfig
from sdjax.typing import Timestep, Tokens

MOST = 0.75  # one place of four always stays
SIDE = 2  # of each 2 x 2 places, one is a target that others may be joined to


@dataclass(frozen=True)
class TokenMerging(AsItIs):
    """The settings of token merging: the share `ratio` (above 0, up to 0.75) of places is joined to others.

    It changes self-attention in the first `levels` levels, which have the largest maps and cost the most. In each 2 x 2
    places, one is a target. The targets change from call to call. The places outside that are most similar to a target
    are averaged with it before attention, and get its result.

    Raises ValueError for values out of range.
    """

    ratio: float = 0.5
    levels: int = 1

    def __post_init__(self) -> None:
        ratio = number("ratio", self.ratio, 0, MOST)
        if ratio == 0:
            raise ValueError("ratio is above 0; to merge nothing, leave the patch out")
        set_fields(self, {"ratio": ratio, "levels": whole("levels", self.levels, 1)})

    def check(self, config: UNetConfig) -> None:
        """Raises ValueError if the network does not have so many levels."""
        check_levels(self.levels, config)

    def intercept(self, shared: None = None, own: None = None) -> Interceptor:
        """Returns the interceptor of `.../attn1`."""
        inside = Inside()

        def intercept(
            method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: Context
        ) -> Any:
            path = inside.see(args, context)
            if not (path.endswith("/attn1") and inside.attends_to_itself(path) and inside.at_level(path, self.levels)):
                return method(*args, **kwargs)
            assert inside.t is not None
            size, x = inside.sizes.around(path), args[0]
            if min(size) < SIDE:
                return method(x, **kwargs)
            joins = match(
                x, targets(inside.t, size), (size[0] // SIDE) * (size[1] // SIDE), int(self.ratio * x.shape[1])
            )
            return unmerge(method(merge(x, joins), **kwargs), joins)

        return intercept


class Joins(NamedTuple):
    """Which places are joined. All are indices into the n places of a map, or into the targets."""

    kept: Int[Array, "b k"]  # places that stay as they are
    targets: Int[Array, "b m"]  # places that others are joined to
    joined: Int[Array, "b r"]  # places that are joined ...
    to: Int[Array, "b r"]  # ... and the number of the target of each


def targets(t: Timestep, size: tuple[int, int]) -> Bool[Array, "b n"]:
    """Returns which places are targets: one in each 2 x 2, chosen at random by the timestep."""
    height, width = size
    rows, columns = height // SIDE, width // SIDE

    def one(t: Array) -> Array:
        key = jax.random.fold_in(jax.random.key(0), t.astype(jnp.int32))
        return jax.random.randint(key, (rows, columns), 0, SIDE * SIDE)

    chosen = jax.vmap(one)(t)[:, :, None, :, None]  # [b, rows, 1, columns, 1]
    number = jnp.arange(SIDE * SIDE).reshape(SIDE, 1, SIDE)
    hit = (chosen == number).reshape(len(t), SIDE * rows, SIDE * columns)
    return jnp.pad(hit, ((0, 0), (0, height % SIDE), (0, width % SIDE))).reshape(len(t), height * width)


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
