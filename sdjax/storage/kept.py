"""Names of what is kept from run to run: static descriptions as JSON, and a digest of sdjax's own files."""

import dataclasses
import enum
import functools
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

ENVIRONMENT = "SDJAX_COMPILATION_CACHE"  # 0: nothing is kept; 1 is the default


class Unkept(ValueError):
    """A description holds something that a file's name cannot say, such as a function of a user."""


def described(value: Any) -> Any:
    """Returns a static value as JSON that differs for values that differ. Raises Unkept for values of other kinds."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return ["float", value.hex()]
    if isinstance(value, enum.Enum):
        return ["enum", type_name(type(value)), value.name]
    if isinstance(value, np.dtype):
        return ["dtype", value.name]
    if isinstance(value, tuple | list):
        return [type_name(type(value)), *map(described, value)]
    if isinstance(value, dict):
        return ["dict", *([described(key), described(one)] for key, one in value.items())]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [[field.name, described(getattr(value, field.name))] for field in dataclasses.fields(value)]
        return [type_name(type(value)), *fields]
    raise Unkept(f"a {type(value).__name__} has no name in a file")


def type_name(kind: type) -> str:
    """Returns the name of a type of sdjax or Python. Raises Unkept for others, whose code may change unseen."""
    if kind.__module__.partition(".")[0] not in ("sdjax", "builtins") or "<" in kind.__qualname__:
        raise Unkept(f"{kind.__qualname__} is not a type of sdjax")
    return f"{kind.__module__}.{kind.__qualname__}"


def file_stem(about: Any) -> str:
    """Returns the name of a file for what JSON says about its content: a digest, so that it differs where that does."""
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:40]


@functools.cache
def sources() -> str:
    """Returns a digest of the sizes and times of sdjax's own files, so that a changed one is traced again."""
    digest = hashlib.sha256()
    root = Path(__file__).parent.parent
    for part in ("adapters", "checks", "diffusion", "nn", "pipeline", "samplers"):
        for folder, _, names in sorted(os.walk(root / part)):
            for name in sorted(names):
                if name.endswith(".py"):
                    found = os.stat(os.path.join(folder, name))
                    digest.update(f"{folder}/{name} {found.st_size} {found.st_mtime_ns}\n".encode())
    return digest.hexdigest()
