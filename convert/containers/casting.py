"""Casts tensors, and names those whose numbers a type cannot hold."""

import dataclasses
from collections.abc import Mapping

import ml_dtypes
import numpy as np

from sdjax.convert.errors import printable

LARGEST_ERROR = 0.01  # of a tensor's norm: rounding to bfloat16, the coarsest type here, makes less than 0.004 of it
_CHUNK = 2**22
_NAMED = 5  # tensors that a message names
_WIDER = {"float16": "bfloat16", "bfloat16": "float32"}


@dataclasses.dataclass(frozen=True)
class Loss:
    """The loss of casting a tensor with `count` numbers: how many became infinite, and how many 0."""

    count: int
    infinite: int
    zero: int
    largest: float

    def __str__(self) -> str:
        if self.infinite:
            return f"{self.infinite} of {self.count} too large, up to {self.largest:.3g}"
        return f"too small, {self.zero} of {self.count} become 0"


def cast(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Returns the array in another floating-point type. Numbers outside its range become infinite or 0."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return array.astype(dtype)


def loss(wide: np.ndarray, narrow: np.ndarray) -> Loss | None:
    """Returns the loss when `narrow` was cast from `wide`; None for mere rounding.

    A loss means that a finite number became infinite, or that small numbers became 0 and changed the tensor by a
    hundredth of its norm. A few zeros among larger numbers are rounding: every released model has some in float16.
    """
    limits, source = ml_dtypes.finfo(narrow.dtype), ml_dtypes.finfo(wide.dtype)
    smallest, greatest = float(limits.smallest_subnormal), float(limits.max)
    if greatest >= float(source.max) and smallest <= float(source.smallest_subnormal):
        return None
    work = np.float64 if wide.dtype.itemsize > 4 else np.float32
    before, after = wide.reshape(-1), narrow.reshape(-1)
    infinite, zero, largest, error, norm = 0, 0, 0.0, 0.0, 0.0
    for start in range(0, before.size, _CHUNK):
        x = before[start : start + _CHUNK].astype(work, copy=False)
        with np.errstate(all="ignore"):
            top, square = max(float(x.max()), -float(x.min())), float(np.dot(x, x))
        # What is below the smallest number errs by half of that at most, which is nothing unless most are
        if top <= greatest and (top == 0 or square > x.size * (smallest / LARGEST_ERROR) ** 2):
            norm += square
            continue
        x, y = x.astype(np.float64), after[start : start + _CHUNK].astype(np.float64)
        finite = np.isfinite(x)
        over = finite & ~np.isfinite(y)
        kept = finite & ~over
        infinite += int(over.sum())
        zero += int((kept & (x != 0) & (y == 0)).sum())
        largest = max(largest, float(np.abs(x[over]).max(initial=0)))
        norm += float(np.square(x[kept]).sum())
        error += float(np.square(x[kept] - y[kept]).sum())
    if infinite or (zero and error >= LARGEST_ERROR**2 * norm):
        return Loss(before.size, infinite, zero, largest)
    return None


def losses_in_words(losses: Mapping[str, Loss], dtype: str) -> str:
    """Returns the sentence that names the tensors whose numbers a type cannot hold."""
    named = [f"{printable(name, limit=200)} ({one})" for name, one in list(losses.items())[:_NAMED]]
    more = [f"{len(losses) - _NAMED} more"] if len(losses) > _NAMED else []
    many = "s" if len(losses) > 1 else ""
    return f"{dtype} cannot hold the numbers of {len(losses)} tensor{many}: {', '.join([*named, *more])}"


def better_type(dtype: str) -> str:
    """Returns the advice which type to use instead."""
    return f"choose {_WIDER[dtype]}" if dtype in _WIDER else "leave the type as it is"
