"""A library of models for tests: the built-in models and given files."""

import dataclasses
from pathlib import Path

import numpy as np

HOME = "http://127.0.0.1:7860"
PICTURE = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)


@dataclasses.dataclass(frozen=True)
class File:
    kind: str
    name: str
    path: Path


class Shelf:
    """Has the files (kind, name, path) and nothing else."""

    def __init__(self, *files):
        built_in = [File("checkpoint", name, Path(name)) for name in ("builtin", "builtin-inpainting")]
        self.files = [*built_in, *(File(*one) for one in files)]

    def entries(self, kind):
        return [one for one in self.files if one.kind == kind]

    def find(self, kind, name):
        for one in self.entries(kind):
            if one.name == name:
                return one
        raise ValueError(f"there is no {kind} {name!r}")

    def folders(self, kind):
        return []

    def hash_soon(self, entries):
        pass
