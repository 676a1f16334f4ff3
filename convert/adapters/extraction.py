"""Extraction: the difference of two checkpoints as a low-rank adapter, one tensor after the other."""

import dataclasses
import re
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from sdjax.adapters.delta import AdapterError, Delta, Difference
from sdjax.adapters.factoring import Truncation, factor
from sdjax.convert.adapters.spelling import PARTS
from sdjax.convert.bundle import Bundle
from sdjax.convert.containers.lazy import LazyTensor, same_bytes
from sdjax.convert.errors import CheckpointError, listed
from sdjax.convert.names.naming import diffusers_name

MIN_DIFFERENCE = 0.01  # kohya's default


@dataclasses.dataclass(frozen=True)
class Extracted:
    """An adapter that turns one model into the other, as far as its ranks allow.

    Attributes:
        adapter: the changes by path.
        kept: by path of each kernel in it, the share of the difference's energy that its ranks keep.
        notices: messages for the user: what was left out.
    """

    adapter: Mapping[str, Delta]
    kept: Mapping[str, float]
    notices: tuple[str, ...]


def extract(
    original: Bundle,
    tuned: Bundle,
    keep: Truncation,
    conv_keep: Truncation | None = None,
    *,
    targets: str | None = None,
    whole: bool = False,
    clamp_quantile: float | None = None,
    min_difference: float = MIN_DIFFERENCE,
) -> Extracted:
    """Returns the low-rank adapter that makes the tuned model out of the original one.

    It reads one tensor of each model at a time. The differences are computed in float32, and factored by a full SVD on
    the device that JAX uses.

    Args:
        keep: the ranks of linear layers and 1x1 convolutions.
        conv_keep: the ranks of larger convolutions. None leaves them out (a LoRA; else it is a LoCon).
        targets: a regular expression; only layers are changed in whose diffusers name it occurs, such as
            "attn2" or "unet/.*to_[qkv]".
        whole: whether to keep the differences of biases and norms too, as they are.
        clamp_quantile: see `factor`.
        min_difference: the text encoder is left out if no number of it differs by more.

    Raises:
        CheckpointError: if the models have other shapes, do not differ, or differ by numbers that are not finite.
        ValueError: for a wrong regular expression.
    """
    pattern = _pattern(targets)
    _check_alike(original, tuned)
    notices, parts = [], list(PARTS)
    largest = _largest_difference(original, tuned)
    if largest <= min_difference:
        parts.remove("text")
        if largest > 0:
            notices.append(
                f"the text encoder differs by at most {largest:.2g} and was left out; a smaller least difference "
                "includes it"
            )
    adapter: dict[str, Delta] = {}
    kept: dict[str, float] = {}
    left: dict[str, int] = {}
    for path in sorted(original.leaves):
        if path.partition("/")[0] not in parts or pattern.search(diffusers_name(path).rpartition(".")[0]) is None:
            continue
        change = _difference(original.leaves[path], tuned.leaves[path])
        if change is None:
            continue
        window = change.ndim == 4 and change.shape[:2] != (1, 1)
        limit = conv_keep if window else keep
        try:
            if whole and path.endswith(("/bias", "/scale")):
                adapter[path] = Difference(jnp.asarray(change))
            elif not path.endswith("/kernel"):
                _count(left, "biases, norms and embeddings")
            elif limit is None:
                _count(left, "convolutions")
            else:
                found = factor(change, limit, clamp_quantile)
                adapter[path], kept[path] = found.change, found.kept
        except AdapterError as error:
            raise CheckpointError(f"the difference of {path} cannot be factored: {error}") from error
    if not adapter:
        raise CheckpointError(
            "the two models do not differ in the layers that were asked for: there is nothing to extract"
        )
    if left:
        what = " and ".join(f"{count} {name}" for name, count in left.items())
        notices.append(f"{what} differ too and were left out")
    return Extracted(adapter, kept, tuple(notices))


def _pattern(targets: str | None) -> re.Pattern[str]:
    try:
        return re.compile(targets or "")
    except re.error as error:
        raise ValueError(f"the targets are no regular expression: {error}; got {targets!r}") from error


def _check_alike(original: Bundle, tuned: Bundle) -> None:
    """Raises CheckpointError unless UNets and text encoders have the same parameters."""
    shapes = [
        {path: leaf.shape for path, leaf in bundle.leaves.items() if path.startswith(("unet/", "text/"))}
        for bundle in (original, tuned)
    ]
    one, two = shapes
    differing = [
        f"{path} is {list(one[path]) if path in one else 'missing'} in the original and "
        f"{list(two[path]) if path in two else 'missing'} in the tuned model"
        for path in sorted({*one, *two})
        if one.get(path) != two.get(path)
    ]
    if differing:
        raise CheckpointError(f"the two models are not of the same kind: {listed(differing)}")


def _largest_difference(original: Bundle, tuned: Bundle) -> float:
    """Returns the largest difference of a number of the text encoders' kernels."""
    largest = 0.0
    for path in original.leaves:
        if path.startswith("text/") and path.endswith("/kernel"):
            change = _difference(original.leaves[path], tuned.leaves[path])
            if change is not None:
                found = float(np.abs(change).max())
                largest = max(largest, found if np.isfinite(found) else np.inf)
    return largest


def _difference(one: LazyTensor, two: LazyTensor) -> np.ndarray | None:
    """Returns the second tensor minus the first in float32; None if they are equal. Gives their memory back."""
    before, after = one.read(), two.read()
    try:
        if before.dtype == after.dtype and same_bytes(before, after):
            return None
        change = after.astype(np.float32) - before.astype(np.float32)
        return change if change.any() else None
    finally:
        one.release()
        two.release()


def _count(counts: dict[str, int], name: str) -> None:
    counts[name] = counts.get(name, 0) + 1
