"""Tables of records' columns, without their pictures: built once, kept in a file, read by column."""

import contextlib
import functools
import hashlib
import json
import math
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image as PillowImage

from sdjax.pictures.samples import orientation
from sdjax.storage.addresses import local
from sdjax.storage.files import new_file

VERSION = 1  # of the files; a file of another version is built again
SUFFIX = ".sdjax-index.npz"


class Table:
    """Columns by name, a row for each record.

    A column of numbers is float64, with NaN for missing values; a column of texts is an object array, with None for
    missing values. Columns whose names start with "_" say where a record is stored; filters cannot use them.
    """

    def __init__(self, length: int, kinds: Mapping[str, str], columns: Mapping[str, np.ndarray]):
        self.length = length
        self.kinds = dict(kinds)  # "number" or "text"
        self._columns = columns

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, name: str) -> np.ndarray:
        return self._columns[name]

    @property
    def names(self) -> tuple[str, ...]:
        """The columns that filters may name."""
        return tuple(sorted(name for name in self.kinds if not name.startswith("_")))

    @classmethod
    def from_rows(cls, rows: Sequence[Mapping[str, Any]]) -> "Table":
        """Returns the table of rows of numbers, truth values (0 and 1) and texts. A column with any text is text."""
        kinds: dict[str, str] = {}
        for row in rows:
            for name, value in row.items():
                if value is not None and kinds.get(name) != "text":
                    kinds[name] = "text" if isinstance(value, str) else "number"
        columns = {name: _column([row.get(name) for row in rows], kind) for name, kind in kinds.items()}
        return cls(len(rows), kinds, columns)

    @classmethod
    def join(cls, tables: Sequence["Table"]) -> "Table":
        """Returns the rows of several tables, one after the other. A column is joined when it is first used."""
        kinds: dict[str, str] = {}
        for table in tables:
            for name, kind in table.kinds.items():
                kinds[name] = "text" if "text" in (kind, kinds.get(name)) else kind
        return cls(sum(map(len, tables)), kinds, _Joined(tables, kinds))

    def save(self, path: Path, stamp: Any) -> None:
        """Writes the table, complete or not at all. `stamp` identifies what it was made from, in terms of JSON."""
        arrays = {"_": _pack({"version": VERSION, "stamp": stamp, "length": self.length, "kinds": self.kinds})}
        for i, (name, kind) in enumerate(self.kinds.items()):
            column = self[name]
            arrays[str(i)] = column if kind == "number" else _pack(column.tolist())
        needs = sum(array.nbytes for array in arrays.values())
        new = new_file(path, overwrite=True, what="writing the index", needs=needs)
        with new as partial, open(partial, "wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, path: Path, stamp: Any) -> "Table | None":
        """Returns the table in a file; None if it is missing, damaged, or was made from another `stamp`."""
        try:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:  # np.load alone leaks it
                head = _unpack(arrays["_"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        if head.get("version") != VERSION or head["stamp"] != json.loads(json.dumps(stamp)):
            return None
        return cls(head["length"], head["kinds"], _Stored(path, head["kinds"]))


class _Stored(Mapping):
    """Columns of a file, each read when it is used."""

    def __init__(self, path: Path, kinds: Mapping[str, str]):
        self.path, self.kinds = path, kinds

    def __getitem__(self, name: str) -> np.ndarray:
        at = str(list(self.kinds).index(name))
        with np.load(self.path, allow_pickle=False) as arrays:
            array = arrays[at]
        return array if self.kinds[name] == "number" else _column(_unpack(array), "text")

    def __iter__(self) -> Iterator[str]:
        return iter(self.kinds)

    def __len__(self) -> int:
        return len(self.kinds)


class _Joined(Mapping):
    """Columns of several tables one after the other."""

    def __init__(self, tables: Sequence[Table], kinds: Mapping[str, str]):
        self.tables, self.kinds = tables, kinds

    def __getitem__(self, name: str) -> np.ndarray:
        kind, parts = self.kinds[name], []
        for table in self.tables:
            if name not in table.kinds:
                parts.append(_column([None] * len(table), kind))
            elif table.kinds[name] == kind:
                parts.append(table[name])
            else:  # numbers here, texts elsewhere
                parts.append(_column([None if np.isnan(v) else v for v in table[name].tolist()], kind))
        return np.concatenate(parts) if parts else _column([], kind)

    def __iter__(self) -> Iterator[str]:
        return iter(self.kinds)

    def __len__(self) -> int:
        return len(self.kinds)


def kept(path: Path | None, stamp: Any, build: Any) -> Table:
    """Returns the table in the file if it was made from `stamp`; otherwise writes and returns `build()`.

    If the folder cannot be written, this is not an error: the table is built again each time.
    """
    table = None if path is None else Table.load(path, stamp)
    if table is None:
        table = build()
        if path is not None:
            with contextlib.suppress(OSError):
                table.save(path, stamp)
    return table


def index_path(beside: str | os.PathLike, folder: str | os.PathLike | None = None) -> Path:
    """Returns the path of the table of a file or folder.

    It is in `folder` if given; otherwise beside the file if that place can be written, and else in the user's cache
    folder. The table of an address with `://` is never beside it.
    """
    text = os.fspath(beside)
    local(folder)
    digest = hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
    if folder is not None:
        return Path(folder) / f"{Path(text).name}-{digest}{SUFFIX}"
    if "://" not in text:
        path = Path(text)
        place = path / SUFFIX if path.is_dir() else path.with_name(path.name + SUFFIX)
        if os.access(place.parent, os.W_OK):
            return place
    return cache_folder() / f"{digest}{SUFFIX}"


@functools.cache
def cache_folder() -> Path:
    """Returns the user's cache folder for tables."""
    import platformdirs

    return platformdirs.user_cache_path("sdjax") / "indices"


def picture_size(file: BinaryIO) -> tuple[int, int]:
    """Returns (width, height) of a picture as it is shown, from its header alone; (0, 0) if that cannot be read."""
    try:
        with PillowImage.open(file, formats=("JPEG", "PNG", "WEBP")) as picture:
            width, height = picture.size
            turned = orientation(picture.info.get("exif", b"")) >= 5
    except Exception:  # Pillow's readers raise all sorts; the picture is refused with its reason when it is decoded
        return 0, 0
    return (height, width) if turned else (width, height)


def _column(values: Iterable[Any], kind: str) -> np.ndarray:
    values = list(values)
    if kind == "number":
        return np.array([np.nan if value is None else _float(value) for value in values], np.float64)
    column = np.empty(len(values), object)
    column[:] = [None if value is None else str(value) for value in values]
    return column


def _float(value: int | float | bool) -> float:
    try:
        return float(value)
    except OverflowError:  # JSON's whole numbers have no bound
        return math.inf if value > 0 else -math.inf


def _pack(value: Any) -> np.ndarray:
    return np.frombuffer(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"), np.uint8)


def _unpack(array: np.ndarray) -> Any:
    return json.loads(array.tobytes())
