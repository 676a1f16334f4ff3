"""Merging the tensors of models, each read, merged and forgotten when it is asked for."""

import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from sdjax.convert.containers.lazy import LazyTensor, is_floating
from sdjax.convert.errors import CheckpointError
from sdjax.convert.merge.cosine import bounds_of
from sdjax.convert.merge.method import Array, Chosen, Method
from sdjax.convert.merge.ratios import Ratios
from sdjax.convert.merge.task_vectors import draw_mask

Mask = Callable[[int, str, tuple[int, ...]], np.ndarray]
Tensors = Mapping[str, LazyTensor]


def drawn(seed: int, density: float) -> Mask:
    """Returns the function that draws which entries of model i's tensor are kept."""
    return lambda model, name, shape: draw_mask(seed, model, name, shape, density)


def merged(
    method: Method,
    models: Sequence[Tensors],
    ratios: Ratios,
    *,
    density: float = 1.0,
    sign: str = "total",
    mask: Mask | None = None,
) -> dict[str, LazyTensor]:
    """Returns the merged tensors by ldm's names, float32 and computed when they are read.

    The names are the first model's. A tensor that another model lacks, or that holds whole numbers, is the first
    model's. Where the first model's has more channels (inpainting), those that all have are merged.
    """
    first, *others = models
    both = {name: [t, *(other[name] for other in others)] for name, t in first.items()
            if is_floating(t.dtype) and all(name in other for other in others)}  # fmt: skip
    bounds = (0.0, 1.0)
    if method.survey is not None:
        bounds = bounds_of([method.survey(*_shared(_read(tensors))[1]) for tensors in both.values()])

    def read(name: str) -> Array:
        a, parts = _shared(_read(both[name]))
        shape = parts[0].shape
        chosen = Chosen(density, sign, None if mask is None else lambda i: mask(i, name, shape), bounds)
        with np.errstate(all="ignore"):
            made = method.merge(parts[0], parts[1:], ratios.at(name), chosen).astype(np.float32, copy=False)
        if not np.isfinite(made).all():
            raise CheckpointError(
                f"the merged {name} has numbers that are not finite: a model's tensor has such numbers, or the ratios "
                "are too large; nothing was written"
            )
        if made.shape == a.shape:
            return made
        out = a.copy()
        out[tuple(slice(n) for n in made.shape)] = made
        return out

    return {
        name: LazyTensor(t.shape, np.dtype(np.float32), functools.partial(read, name), name=name) if name in both else t
        for name, t in first.items()
    }


def _read(tensors: Sequence[LazyTensor]) -> list[Array]:
    """Returns float32 arrays, and gives the files' memory back."""
    arrays = [np.array(tensor.read(), np.float32) for tensor in tensors]
    for tensor in tensors:
        tensor.release()
    return arrays


def _shared(arrays: Sequence[Array]) -> tuple[Array, list[Array]]:
    """Returns the first array, and the parts of all arrays that all have."""
    shape = tuple(slice(min(sizes)) for sizes in zip(*(array.shape for array in arrays), strict=True))
    return arrays[0], [array[shape] for array in arrays]
