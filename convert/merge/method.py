"""What a method of merging is: a function of one tensor of every model."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

Array = np.ndarray  # float32, a tensor as ldm's files store it


@dataclasses.dataclass(frozen=True)
class Chosen:
    """What a method may depend on besides tensors and ratios.

    `density` is the share of a difference that is kept. `sign` says which sign wins, "total" or "frequency". `mask`
    returns which entries of model i's tensor are kept, a bool array. `bounds` are the least and the greatest similarity
    of the two models' tensors, which `Method.survey` measures.
    """

    density: float = 1.0
    sign: str = "total"
    mask: Callable[[int], np.ndarray] | None = None
    bounds: tuple[float, float] = (0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to merge. `merge(a, others, ratios, chosen)` returns the merged tensor, float32.

    Attributes:
        least, most: how many models it takes; None: any number.
        ratio: its default.
        per_model: whether there is a ratio for each further model; else there is one.
        options: which fields of `Chosen` its user may set, and "seed" if it draws.
        survey: returns similarities of two tensors, whose range over all tensors becomes `Chosen.bounds`.
        about: the formula, for help texts.
    """

    merge: Callable[[Array, Sequence[Array], Sequence[float], Chosen], Array]
    least: int
    most: int | None
    ratio: float
    per_model: bool
    about: str
    options: tuple[str, ...] = ()
    survey: Callable[[Array, Array], Array] | None = None
