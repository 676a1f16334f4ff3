"""JSON read strictly: no key twice, no NaN, no nesting or number that costs much.

Every character can cost some 25 bytes when it is read: callers bound the size first.
"""

import json
from collections.abc import Callable
from typing import Any, NoReturn

from sdjax.convert.errors import CheckpointError, shown


def read_json(data: bytes, error: Callable[[str], CheckpointError]) -> dict[str, Any]:
    """Returns the JSON object in `data`.

    Args:
        error: makes the exception for a reason, such as `MappedFile.error`.

    Raises:
        CheckpointError: for anything but one object of well-formed JSON without duplicate keys, NaN and infinities.
    """
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_object,
            parse_float=_finite,
            parse_int=_integer,
            parse_constant=_no_constant,
        )
    except RecursionError as problem:
        raise error("its JSON is nested too deeply") from problem
    except ValueError as problem:  # JSONDecodeError and UnicodeDecodeError are
        reason = str(problem) if type(problem) is ValueError else "it is not well-formed"
        raise error(f"its JSON cannot be read: {reason}") from problem
    if type(value) is not dict:
        raise error("its JSON is no object of names and values")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"it has the key {shown(twice)} twice")
    return value


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError("it has a number that is too large")
    return value


def _integer(text: str) -> int:
    if len(text) > 40:
        raise ValueError("it has a number of too many digits")
    return int(text)


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")
