"""The adapters of a batch as the arrays of the patch `LoRA`: each image's own, or kept once for all images."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from sdjax.adapters.delta import AdapterError, Delta, Difference, LowRank, Strength, weight_of
from sdjax.adapters.lora import ImageLoRA, SharedLoRA

Plain: TypeAlias = Mapping[str, Delta]  # low-rank changes and differences, by the paths of leaves of one network


def for_images(adapters: Sequence[tuple[Plain, float]]) -> ImageLoRA:
    """Returns the adapters of a batch as arrays of one shape, each image's for itself.

    `adapters` has an adapter (by the paths of leaves in the network) and its weight for each image. Its changes are
    low-rank changes of kernels, or differences. Ranks are padded with zeros to the next power of two, so that other
    adapters need no other program. A leaf that an image's adapter does not change gets zeros. Use {} for an image
    without an adapter. Raises AdapterError if two adapters have different shapes for a leaf.
    """
    low: dict[str, LowRank] = {}
    whole: dict[str, np.ndarray] = {}
    for path, shape in _shapes([adapter for adapter, _ in adapters]).items():
        changes = [adapter.get(path) for adapter, _ in adapters]
        if any(isinstance(change, Difference) for change in changes):
            whole[path] = np.stack([_whole(change, shape) for change in changes])
        else:
            low[path.removesuffix("/kernel")] = _stack(changes)
    return ImageLoRA(low, np.asarray([weight for _, weight in adapters], np.float32), whole)  # type: ignore[arg-type]


def share_by_images(
    adapters: Sequence[Plain], weights: Sequence[Sequence[float | Strength]]
) -> tuple[SharedLoRA, ImageLoRA]:
    """Returns adapters that are kept once, and for each image what it takes of them.

    `weights[i][k]` is the weight of adapter k in image i. Ranks of all adapters are added, and padded with zeros to the
    next power of two. Raises AdapterError if two adapters have different shapes for a leaf.
    """
    low: dict[str, LowRank] = {}
    whole: dict[str, np.ndarray] = {}
    factors: dict[str, np.ndarray] = {}
    for path, shape in _shapes(adapters).items():
        changes = [adapter.get(path) for adapter in adapters]
        at = np.asarray([[weight_of(one, f"unet/{path}") for one in own] for own in weights], np.float32)  # [b, k]
        if any(isinstance(change, Difference) for change in changes):
            there = [k for k, change in enumerate(changes) if change is not None]
            whole[path], factors[path] = np.stack([_whole(changes[k], shape) for k in there]), at[:, there]
        else:
            layer = path.removesuffix("/kernel")
            several = [(k, change) for k, change in enumerate(changes) if isinstance(change, LowRank)]
            rank = _bucket(sum(change.down.shape[-1] for _, change in several))
            down = np.concatenate([np.asarray(change.down, np.float32) for _, change in several], -1)
            up = np.concatenate([np.asarray(change.up, np.float32) for _, change in several])
            each = [at[:, [k]] * np.float32(change.scale) * np.ones(change.down.shape[-1], np.float32)
                    for k, change in several]  # fmt: skip
            low[layer] = _padded(LowRank(down, up), rank)
            own = np.concatenate(each, -1)
            factors[layer] = np.pad(own, ((0, 0), (0, rank - own.shape[-1])))
    own_arrays = ImageLoRA({}, np.ones(len(weights), np.float32), {}, factors)  # type: ignore[arg-type]
    return SharedLoRA(low, whole), own_arrays  # type: ignore[arg-type]


def _shapes(adapters: Sequence[Plain]) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each leaf that adapters change. Raises AdapterError if it has several."""
    out = {}
    for path in sorted({path for adapter in adapters for path in adapter}):
        shapes = sorted({_shape(adapter[path]) for adapter in adapters if path in adapter})
        if len(shapes) > 1:
            raise AdapterError(f"two adapters have different shapes for {path!r}: {', '.join(map(str, shapes))}")
        out[path] = shapes[0]
    return out


def _shape(change: Delta) -> tuple[int, ...]:
    if isinstance(change, LowRank):
        return (*change.down.shape[:-1], change.up.shape[-1])
    assert isinstance(change, Difference)
    return change.value.shape


def _whole(change: Delta | None, shape: tuple[int, ...]) -> np.ndarray:
    zero = np.zeros(shape, np.float32)
    return zero if change is None else np.asarray(change.difference(zero))  # type: ignore[arg-type]


def _stack(changes: Sequence[Delta | None]) -> LowRank:
    """Returns the changes of one kernel, stacked over images; an image without a change gets zeros."""
    known = [change for change in changes if isinstance(change, LowRank)]
    rank = _bucket(max(change.down.shape[-1] for change in known))
    first = _padded(known[0], rank)
    none = LowRank(np.zeros_like(first.down), np.zeros_like(first.up), 0.0)
    each = [_padded(change, rank) if isinstance(change, LowRank) else none for change in changes]
    down, up = (np.stack([getattr(change, name) for change in each]) for name in ("down", "up"))
    return LowRank(down, up, np.asarray([change.scale for change in each], np.float32))  # type: ignore[arg-type]


def _bucket(rank: int) -> int:
    """Returns the next power of two."""
    return 1 << (rank - 1).bit_length()


def _padded(change: LowRank, rank: int) -> LowRank:
    """Returns the same change with zeros in its factors up to a rank, as NumPy's arrays: nothing is compiled."""
    down, up = np.asarray(change.down), np.asarray(change.up)
    more = rank - up.shape[0]
    down = np.pad(down, [*[(0, 0)] * (down.ndim - 1), (0, more)])
    scale = np.float32(change.scale)
    return LowRank(down, np.pad(up, [(0, more), (0, 0)]), scale)  # type: ignore[arg-type]
