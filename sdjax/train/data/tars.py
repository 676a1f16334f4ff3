"""Tar shards as img2dataset writes them for WebDataset: `000000012.jpg`, `.txt`, `.json` one after the other.

A shard is read once from start to end with the standard library's tarfile, which gives the offset of each file. After
that, files are read at their offsets, in any order. The offsets are kept in a table beside the shard.
"""

import glob
import io
import json
import os
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
import numpy as np

from sdjax.pictures.listing import SUFFIXES, natural
from sdjax.storage import addresses, buckets
from sdjax.storage.text_files import decode, lines
from sdjax.train.data.captions import ENDINGS
from sdjax.train.data.records import Record, SourceError, as_captions, captions_in, scalars
from sdjax.train.data.table import Table, index_path, kept, picture_size
from sdjax.train.data.walk import is_foreign

_PLACES = ("picture", "txt", "json")  # files read by offset, which is in the columns _picture, _picture_size, ...
_TEXTS = [ending[1:] for ending in ENDINGS]  # endings of caption files, the preferred first
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")


class TarShards:
    """The records of tar shards: files by their names, wildcards, `{00000..00099}`, folders, or several of these.

    A name with `://` is read through fsspec (`s3://bucket/{00000..00099}.tar`). The files of one record have the same
    name up to the first dot; a record without a picture is skipped. Captions are the lines of the .txt file (or another
    of `captions.ENDINGS`), else those in the .json file; with `caption` they are that column of the .json. The other
    values of the .json are the record's columns.
    """

    def __init__(
        self, path: str | os.PathLike | Sequence[str], *, caption: str | None = None, default: str | None = None,
        index_folder: str | os.PathLike | None = None,
    ):  # fmt: skip
        self.name = str(path) if isinstance(path, str | os.PathLike) else str(path[0])
        self.shards = [Shard(one) for one in shard_names(path)]
        self.caption, self.default = caption, default
        tables = []
        for shard in _progress(self.shards):
            build = lambda shard=shard: _index(shard, caption)  # noqa: E731
            tables.append(kept(index_path(shard.name, index_folder), [shard.stamp(), caption, _TEXTS], build))
        self.table = Table.join(tables)
        if not len(self.table):
            raise SourceError(f"{self.name} holds no pictures; its shards hold NAME.jpg, NAME.txt and NAME.json")
        if default is None:
            self._check_captions()
        self.ends = np.cumsum([len(table) for table in tables])
        kinds = self.table.kinds
        self.places = {
            part: np.stack([self.table[f"_{part}"], self.table[f"_{part}_size"]], 1)
            for part in _PLACES
            if f"_{part}" in kinds
        }
        self.stems = self.table["_key"]

    def _check_captions(self) -> None:
        captions = self.table["caption"] if "caption" in self.table.kinds else [None] * len(self.table)
        without = sum(caption is None for caption in captions)
        if without:
            raise SourceError(
                f"{without} of {len(self.table)} pictures in {self.name} have no caption, neither in a .txt (or "
                f"{', '.join(ENDINGS[1:])}) nor in {self.caption or 'caption'} of a .json: name the column, or set a "
                "default"
            )

    def __len__(self) -> int:
        return len(self.table) if self.table is not None else int(self.ends[-1])

    def __getitem__(self, i: int) -> Record:
        shard = self.shards[int(np.searchsorted(self.ends, i, side="right"))]
        found = {part: self._read(shard, part, i) for part in _PLACES}
        columns = _columns(found["json"])
        captions = _captions(found["txt"], columns, self.caption, self.place(i))
        if not captions and self.default is not None:
            captions = (self.default,)
        return Record(f"{shard.stem}/{self.stems[i]}", found["picture"], captions, columns)

    @property
    def identities(self) -> list[tuple[str, float]]:
        """The identity of each record: the same under every name of its shard."""
        shards = np.searchsorted(self.ends, np.arange(len(self.places["picture"])), side="right")
        names = [shard.name if shard.remote else os.path.realpath(shard.name) for shard in self.shards]
        return [(names[k], offset) for k, offset in zip(shards, self.places["picture"][:, 0].tolist())]

    def place(self, i: int) -> str:
        """Returns the place of record i: its name in the shard, without the ending, and the shard."""
        shard = self.shards[int(np.searchsorted(self.ends, i, side="right"))]
        return f"{self.stems[i]} in {shard.name}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "table": None}

    def _read(self, shard: "Shard", part: str, i: int) -> bytes:
        if part not in self.places or np.isnan(self.places[part][i, 0]):
            return b""
        offset, size = self.places[part][i]
        return shard.read(int(offset), int(size))


class Shard:
    """A file that is read in pieces, locally or through fsspec. It does not stay open."""

    def __init__(self, name: str):
        self.name = name
        self.remote = _is_remote(name)
        self.stem = name.rsplit("/", 1)[-1].removesuffix(".tar")

    def stamp(self) -> list[Any]:
        """Returns values that change when the file changes."""
        if not self.remote:
            stat = os.stat(self.name)
            return [stat.st_size, stat.st_mtime_ns]
        system, path = self._system()
        return [str(system.ukey(path))]

    def open(self) -> BinaryIO:
        """Returns the file, open for reading."""
        if not self.remote:
            return open(self.name, "rb")
        system, path = self._system()
        return system.open(path, "rb")

    def read(self, offset: int, size: int) -> bytes:
        """Returns `size` bytes from `offset` on. Raises OSError if there are fewer."""
        if self.remote:
            system, path = self._system()
            data = system.cat_file(path, offset, offset + size)
        else:
            file = os.open(self.name, os.O_RDONLY)
            try:
                data = os.pread(file, size, offset)
            finally:
                os.close(file)
        if len(data) != size:
            raise OSError(f"{self.name} ends before byte {offset + size}: it was changed while it is read")
        return data

    def _system(self) -> tuple[Any, str]:
        return _open_system(self.name)


def _is_remote(name: str) -> bool:
    """Returns whether fsspec must read a name."""
    kind = addresses.scheme(name)
    if kind is None:
        return False
    if "://" not in name or kind not in (*addresses.PACKAGES, *fsspec.available_protocols()):
        addresses.remote(name)
    return True


def _open_system(name: str) -> tuple[Any, str]:
    """Returns the file system of an address, and the address's name in it."""
    if addresses.scheme(name) in addresses.PACKAGES:
        return buckets.system(name)
    try:
        return fsspec.core.url_to_fs(name)
    except ImportError as error:
        raise SourceError(f"{name} is read through fsspec, which says: {error}") from None


def shard_names(path: str | os.PathLike | Sequence[str]) -> list[str]:
    """Returns the shards' names, sorted, with wildcards and folders expanded. Raises SourceError for a missing one."""
    several = [str(path)] if isinstance(path, str | os.PathLike) else [str(one) for one in path]
    names: list[str] = []
    for pattern in several:
        found = [name for one in _braces(pattern) for name in _matching(one)]
        if not found:
            raise SourceError(f"{pattern} is no tar shard: there is no file of that name")
        names += found
    once = {name if "://" in name else os.path.realpath(name): name for name in reversed(names)}
    return sorted(once.values(), key=natural)


def _braces(pattern: str) -> list[str]:
    match = _BRACES.search(pattern)
    if match is None:
        return [pattern]
    first, last = match[1], match[2]
    numbers = [f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1)]
    return [one for n in numbers for one in _braces(pattern[: match.start()] + n + pattern[match.end() :])]


def _matching(name: str) -> list[str]:
    if _is_remote(name):
        system, path = _open_system(name)
        if glob.has_magic(path) or not path.endswith(".tar"):
            found = system.glob(path if glob.has_magic(path) else path.rstrip("/") + "/*.tar")
            return [system.unstrip_protocol(one) for one in found]
        if not system.exists(path):
            raise SourceError(f"{name} is no tar shard: there is no file of that name")
        return [name]
    if Path(name).is_dir():
        return [str(one) for one in Path(name).glob("*.tar") if not is_foreign(one.name)]
    if Path(name).is_file():
        return [name]
    if glob.has_magic(name):
        return glob.glob(name, recursive=True)
    raise SourceError(f"{name} is no tar shard: there is no file of that name")


def _index(shard: Shard, caption: str | None) -> Table:
    groups: dict[str, dict[str, Any]] = {}
    try:
        with shard.open() as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if member.isreg() and not member.issparse():
                    _add(groups, tar, member)
    except (tarfile.TarError, EOFError) as error:
        raise SourceError(
            f"{shard.name} is no whole tar file ({error}); fetch it again, and unpack it if it is compressed"
        ) from None
    rows = []
    for stem, group in groups.items():
        if "picture" not in group:
            continue
        columns = _columns(group.pop("json data", b""))
        captions = _captions(
            group.pop("txt data", b""),
            columns,
            caption,
            f"{group.pop('txt name', f'{stem}.json')} in {shard.name}",
        )
        group.pop("rank", None)
        row = {**scalars(columns), "caption": captions[0] if captions else None, "_key": stem}
        row["width"], row["height"] = group.pop("sides")
        for part, (offset, size) in group.items():
            row[f"_{part}"], row[f"_{part}_size"] = offset, size
        rows.append(row)
    return Table.from_rows(rows)


def _add(groups: dict[str, dict[str, Any]], tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
    folder, slash, base = member.name.rpartition("/")
    if any(is_foreign(name) for name in folder.split("/") if name != "."):
        return
    stem, _, ending = base.partition(".")  # WebDataset's rule: a key ends at the first dot
    rank = _rank(ending.lower())
    part = "picture" if f".{ending.lower()}" in SUFFIXES else "txt" if rank is not None else ending.lower()
    group = groups.setdefault(folder + slash + stem, {})
    if not stem or part not in _PLACES or (part in group and (rank is None or rank >= group["rank"])):
        return
    data: Any = tar.extractfile(member)
    if part == "picture":
        group["sides"] = picture_size(data)
    else:
        text = data.read()
        if rank is not None:
            if not text.strip():  # an empty file says nothing
                return
            group |= {"rank": rank, "txt name": member.name}
        group[f"{part} data"] = text
    group[part] = (member.offset_data, member.size)


def _rank(ending: str) -> int | None:
    """Returns the index in `_TEXTS` of a caption file's ending, or None. A picture's ending may stand before it."""
    first, _, rest = ending.partition(".")
    text = rest if f".{first}" in SUFFIXES else ending
    return _TEXTS.index(text) if text in _TEXTS else None


def _columns(data: bytes) -> dict[str, Any]:
    try:
        columns = json.load(io.BytesIO(data)) if data else {}
    except (ValueError, RecursionError):
        return {}
    return columns if isinstance(columns, dict) else {}


def _captions(text: bytes, columns: dict[str, Any], caption: str | None, place: str) -> tuple[str, ...]:
    if text and caption is None:
        try:
            return as_captions(lines(decode(text, place)), place)
        except ValueError as error:
            raise SourceError(str(error)) from None
    return captions_in(columns, caption, place)


def _progress(shards: list[Shard]) -> Any:
    from tqdm.auto import tqdm

    return tqdm(shards, "reading the shards' lists", delay=2, unit=" shards", leave=False)
