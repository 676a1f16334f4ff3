"""Checks of argument values, the same for all public functions. Imports nothing slow, for the command line."""

import math
import operator
from collections.abc import Sequence
from typing import Any

DTYPES = ("float32", "bfloat16", "float16")
DTYPE_ALIASES = {
    "fp32": "float32", "f32": "float32", "single": "float32", "full": "float32",
    "bf16": "bfloat16", "fp16": "float16", "f16": "float16", "half": "float16",
}  # fmt: skip
MAX_SEED = 2**64 - 1


def whole(
    name: str, value: Any, low: int | None = None, high: int | None = None, *, unit: str = "", context: str = ""
) -> int:
    """Returns a whole number of Python, NumPy or JAX as Python's int. Raises ValueError otherwise, or if out of range.

    In the message `unit` comes before the range, `context` after it.
    """
    try:
        if _is_bool(value):
            raise TypeError
        out = operator.index(value)
    except TypeError:
        out = None
    if out is None or (low is not None and out < low) or (high is not None and out > high):
        ours = f": write {int(value)}" if out is None and isinstance(value, float) and value.is_integer() else ""
        within = "" if low is None else f" from {low} up" if high is None else f" from {low} to {high}"
        raise ValueError(f"{name} is a whole number{unit}{within}{context}; got {shown(value)}{ours}")
    return out


def number(name: str, value: Any, low: float = -math.inf, high: float = math.inf, meaning: str = "") -> float:
    """Returns a finite number as Python's float. Raises ValueError for anything else, or if out of range."""
    try:
        if _is_bool(value) or isinstance(value, str | bytes) or getattr(value, "ndim", False):
            raise TypeError
        out = float(value)
    except (TypeError, ValueError, OverflowError):
        out = math.nan
    if not math.isfinite(out) or not low <= out <= high:
        within = f" from {low:g} to {high:g}" if math.isfinite(high) else f" from {low:g} up" * math.isfinite(low)
        kind = "number" if within else "finite number"
        raise ValueError(f"{name} is a {kind}{within}{meaning}; got {shown(value)}")
    return out


def flag(name: str, value: Any) -> bool:
    """Returns a bool. Raises ValueError for anything except True, False (also NumPy's), 0 and 1."""
    if not (_is_bool(value) or (isinstance(value, int) and value in (0, 1))):
        raise ValueError(f"{name} is True or False; got {shown(value)}")
    return bool(value)


def texts(name: str, value: Any, default: str | None = None) -> list[str]:
    """Returns one text or a sequence of texts as a list, with the default for None.

    Raises ValueError for anything else.
    """
    several = [value] if value is None or isinstance(value, str) else value
    if not is_sequence(several):
        raise ValueError(f"{name} is a text, or a sequence of texts; got {shown(value)}")
    out = [default if one is None else one for one in several]
    for one in out:
        if not isinstance(one, str):
            raise ValueError(f"{name} is a text, or a sequence of texts; got {shown(one)}")
    return [str(one) for one in out]


def seeds(value: Any, count: int) -> list[int]:
    """Returns `count` seeds: seed, seed + 1, ... from one seed, or those of a sequence. None means 0, or i for entry i.

    Raises ValueError for anything else.
    """
    if value is None:
        value = 0
    if is_sequence(value):
        return [seed(i if one is None else one) for i, one in enumerate(value)]
    first = seed(value)
    seed(first + count - 1)
    return [first + i for i in range(count)]


def seed(value: Any) -> int:
    """Returns a seed. Raises ValueError unless it is a whole number from 0 to 2**64 - 1."""
    try:
        out = whole("a seed", value)
    except ValueError:
        raise ValueError(f"a seed is a whole number from 0 to 2**64 - 1; got {shown(value)}") from None
    if not 0 <= out <= MAX_SEED:
        raise ValueError(f"a seed lies between 0 and 2**64 - 1; got {out}")
    return out


def dtype_name(dtype: Any, argument: str = "dtype") -> str:
    """Returns the name of a type to compute in, given by name or as NumPy's or JAX's type.

    Raises ValueError for any but those of DTYPES.
    """
    name = dtype
    if isinstance(dtype, str):
        name = DTYPE_ALIASES.get(dtype.lower(), dtype.lower())
    elif str(dtype).startswith("torch."):
        ours = str(dtype).removeprefix("torch.")
        how = f": write {ours!r}" if ours in DTYPES else ""
        raise ValueError(f"{argument} is one of {', '.join(DTYPES)}; got PyTorch's {dtype}{how}")
    elif dtype is not None:
        import numpy as np

        try:
            name = np.dtype(dtype).name
        except TypeError:
            name = None
    if name not in DTYPES:
        raise ValueError(f"{argument} is one of {', '.join(DTYPES)}; got {shown(dtype)}")
    return name


def shown(value: Any) -> str:
    """Returns a value as one line of text for messages. Long values are cut."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # a foreign object's repr may fail in any way; what counts is the message around it
        text = type(value).__name__
    return text if len(text) <= 80 else f"{text[:60]}... ({type(value).__name__})"


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool) or str(getattr(value, "dtype", "")) == "bool"


def is_sequence(value: Any) -> bool:
    """Returns whether a value is a sequence (except text) or an array with at least one axis."""
    if getattr(value, "ndim", None) is not None:
        return value.ndim > 0
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)
