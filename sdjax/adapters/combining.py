"""Sums and smaller ranks of adapters: every changed leaf by itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax.numpy as jnp

from sdjax.adapters.delta import Adapter, AdapterError, Delta, Difference, LowRank, Strength, weight_of
from sdjax.adapters.factoring import Factored, Truncation, concatenate, factor, refactor
from sdjax.adapters.families import LoHa, LoKr

MOST_NAMED = 20  # of the changes that cannot be added up


@dataclass(frozen=True)
class Combined:
    """An adapter, and by path the share of energy that its low-rank changes keep of what they stand for."""

    adapter: dict[str, Delta]
    kept: Mapping[str, float]


def combine(
    adapters: Sequence[tuple[Adapter, float | Strength]],
    keep: Truncation | None = None,
    conv_keep: Truncation | None = None,
    clamp_quantile: float | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> Combined:
    """Returns the weighted sum of adapters: exactly by default, else with the ranks that `keep` allows.

    Without `keep`, factors are put side by side, so that ranks add up. `conv_keep` is for convolutions larger than 1x1;
    None means as `keep`. One adapter at weight 1 with `keep` is a resized one. See `factor` for `clamp_quantile`.

    LoHa and LoKr become whole differences, if `shapes` has the shapes of the model's parameters by path. Raises
    AdapterError, naming all such changes, for kinds that are functions of the model's weights, such as DoRA: they have
    no sum. Also for changes of different shapes and numbers that are not finite.
    """
    out: dict[str, Delta] = {}
    kept: dict[str, float] = {}
    problems = []
    for path in dict.fromkeys(path for adapter, _ in adapters for path in adapter):
        changes = [
            (_plain(adapter[path], (shapes or {}).get(path)), weight_of(weight, path))
            for adapter, weight in adapters
            if path in adapter
        ]
        low = [(delta, weight) for delta, weight in changes if isinstance(delta, LowRank)]
        whole = [(delta, weight) for delta, weight in changes if isinstance(delta, Difference)]
        if len(low) + len(whole) < len(changes):
            other = next(delta for delta, _ in changes if not isinstance(delta, LowRank | Difference))
            problems.append(f"{path} is changed by {type(other).__name__}")
            continue
        try:
            out[path] = _sum(low, whole)
            limit = conv_keep if conv_keep is not None and _is_window(out[path]) else keep
            if limit is not None and path.endswith("/kernel"):
                found = _truncated(low, out[path], limit, clamp_quantile)
                out[path], kept[path] = found.change, found.kept
        except AdapterError as error:
            problems.append(f"{path}: {error}")
    if problems:
        named = "; ".join(problems[:MOST_NAMED])
        raise AdapterError(f"only changes that are the same for every model can be added up or resized: {named}")
    return Combined(out, kept)


def _plain(delta: Delta, shape: tuple[int, ...] | None) -> Delta:
    """Returns a change that does not depend on the kernel's numbers as a whole difference; others as they are."""
    if shape is None or not isinstance(delta, LoHa | LoKr):
        return delta
    return Difference(delta.difference(jnp.zeros(shape, jnp.float32)))


def _sum(low: Sequence[tuple[LowRank, float]], whole: Sequence[tuple[Difference, float]]) -> Delta:
    if not whole:
        return concatenate(low)
    shapes = {delta.value.shape for delta, _ in whole}
    shapes |= {(*delta.down.shape[:-1], delta.up.shape[-1]) for delta, _ in low}
    if len(shapes) > 1:
        raise AdapterError(f"its changes have different shapes: {', '.join(map(str, sorted(shapes)))}")
    zero = jnp.zeros(shapes.pop(), jnp.float32)
    changes: list[tuple[Delta, float]] = [*low, *whole]
    return Difference(sum((weight * delta.difference(zero) for delta, weight in changes), zero))


def _truncated(
    low: Sequence[tuple[LowRank, float]], total: Delta, keep: Truncation, clamp_quantile: float | None
) -> Factored:
    if isinstance(total, Difference):
        return factor(total.value, keep, clamp_quantile)
    return refactor(low, keep, clamp_quantile)


def _is_window(delta: Delta) -> bool:
    """Returns whether a change is that of a convolution larger than 1x1."""
    shape = (
        delta.down.shape if isinstance(delta, LowRank) else delta.value.shape if isinstance(delta, Difference) else ()
    )
    return len(shape) == 4 and shape[:2] != (1, 1)
