"""ArrayRecord files of pictures. Each record is a complete safetensors file.

A record has the tensor `image` and may have a `mask` and a `hint`: uint8, the bytes of a JPEG, PNG or WebP file. Its
metadata are three texts: `key`, `captions` (a JSON list) and `columns` (a JSON object). Any language with a safetensors
library can write such records. Write with the option `group_size:1`; otherwise reading one record also reads its
neighbours.

    python -m sdjax.train.data.array_records OUT --folder PICTURES

writes the pictures of a folder, of tar shards or of a TensorFlow Dataset in this format.
"""

import argparse
import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from sdjax.errors import doing, foreign, sentence
from sdjax.pictures.listing import natural
from sdjax.storage import buckets
from sdjax.storage.files import new_file, write_file
from sdjax.train.data.records import Record, SourceError, as_captions, scalars
from sdjax.train.data.table import Table, index_path, kept, picture_size
from sdjax.train.data.walk import is_foreign

ENDINGS = (".array_record", ".arrayrecord")
OPTIONS = "group_size:1"
FETCHING = "fetching the records of"


class ArrayRecords:
    """The records of ArrayRecord files: a file, several of them, or a folder of them, sorted by name."""

    def __init__(self, path: str | os.PathLike | Sequence[str], *, index_folder: str | os.PathLike | None = None):
        self.paths = record_files(path)
        self.name = str(path) if isinstance(path, str | os.PathLike) else self.paths[0]
        self.reader = open_reader(self.paths)
        parts = [(file, index_path(file, index_folder), Path(file).stat()) for file in self.paths]
        tables = []
        for file, where, stat in parts:
            tables.append(kept(where, [stat.st_size, stat.st_mtime_ns], lambda file=file: _index(file)))
        self.table = Table.join(tables)
        self.ends = np.cumsum([len(table) for table in tables])

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, i: int) -> Record:
        return decode(record_bytes(self.reader, i, self.name), self.place(i))

    @property
    def identities(self) -> list[tuple[str, int]]:
        """The identity of each record: the same under every name of its file."""
        sizes = np.diff(self.ends, prepend=0)
        return [(os.path.realpath(file), i) for file, size in zip(self.paths, sizes) for i in range(size)]

    def place(self, i: int) -> str:
        """Returns where record i is stored: its number in its file (from 0) and the file."""
        k = int(np.searchsorted(self.ends, i, side="right"))
        return f"record {i - (int(self.ends[k - 1]) if k else 0)} of {self.paths[k]}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "table": None}


def encode(record: Record) -> bytes:
    """Returns the bytes of a record as stored in the files."""
    tensors = {"image": np.frombuffer(record.image, np.uint8)}
    for name in "mask", "hint":
        if (content := getattr(record, name)) is not None:
            tensors[name] = np.frombuffer(content, np.uint8)
    texts = {"key": record.key, "captions": record.captions, "columns": dict(record.columns)}
    return pack(tensors, texts)


def decode(data: bytes, name: str) -> Record:
    """Returns the record that the bytes encode. Raises SourceError for any other bytes; the message uses `name`."""
    tensors, texts = unpack(data, name)
    try:
        image, captions, columns = tensors["image"], texts["captions"], texts["columns"]
    except KeyError as error:
        raise SourceError(f"{name} has no {error}; see sdjax.train.data.array_records") from None
    if not isinstance(columns, dict):
        raise SourceError(f"{name} has columns that are not a JSON object with names but {columns!r:.60}")
    mask, hint = (tensors[name].tobytes() if name in tensors else None for name in ("mask", "hint"))
    return Record(texts["key"], image.tobytes(), as_captions(captions, name), columns, mask, hint)


def pack(tensors: Mapping[str, np.ndarray], texts: Mapping[str, Any]) -> bytes:
    """Returns a safetensors file of the tensors; `texts` become its metadata, all but `key` as JSON."""
    metadata = {name: value if name == "key" else json.dumps(value) for name, value in texts.items()}
    return safetensors.numpy.save(dict(tensors), metadata)


def unpack(data: bytes, name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns the tensors and texts given to `pack`. Raises SourceError for other bytes; the message uses `name`."""
    try:
        tensors = safetensors.numpy.load(data)
        head = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        metadata = head["__metadata__"]
        texts = {key: value if key == "key" else json.loads(value) for key, value in metadata.items()}
        texts["key"]
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise SourceError(
            f"{name} holds records of another kind ({error}); sdjax reads those that `python -m "
            "sdjax.train.data.array_records` writes, and TensorFlow Datasets through their own name"
        ) from None
    return tensors, texts


def record_files(path: str | os.PathLike | Sequence[str]) -> list[str]:
    """Returns the ArrayRecord files at a path. Raises SourceError if there is none."""
    if not isinstance(path, str | os.PathLike):
        files = [str(buckets.here(one, FETCHING)) for one in path]
    elif Path(here := buckets.here(path, FETCHING)).is_dir():
        files = [str(one) for one in Path(here).iterdir() if one.suffix in ENDINGS and not is_foreign(one.name)]
    else:
        files = [str(path)]
    missing = [file for file in files if not Path(file).is_file()]
    if missing or not files:
        raise SourceError(f"{missing[0] if missing else path} holds no ArrayRecord file (NAME{ENDINGS[0]})")
    once = {os.path.realpath(file): file for file in reversed(files)}
    return sorted(once.values(), key=natural)


def open_reader(files: Sequence[str]) -> Any:
    """Returns the records of the files, by number, as bytes. Raises SourceError if one is not an ArrayRecord file."""
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    try:
        return ArrayRecordDataSource(list(files))
    except (ValueError, RuntimeError, OSError) as error:
        raise SourceError(f"{files[0]} or one of its neighbours is no whole ArrayRecord file ({error})") from None


def record_bytes(reader: Any, i: int, name: str) -> bytes:
    """Returns record i. Raises OSError if its checksum is wrong; `name` is the file's name in the message."""
    try:
        return reader[int(i)]
    except (ValueError, RuntimeError, IndexError) as error:
        raise OSError(f"record {i} of {name} is damaged ({error})") from None


def write(source: Any, folder: str | os.PathLike, *, shard_size: int = 10_000, name: str = "pictures") -> list[Path]:
    """Writes a source's records, in order, and returns the files `NAME-00000-of-00003.array_record`, ...

    An existing file is kept: a file gets its name only when it is complete. Records that cannot be read are left out.
    Raises SourceError if the folder's files were written with other settings.
    """
    from tqdm.auto import tqdm

    folder = Path(folder)
    agree(folder, {"source": source.name, "records": len(source), "shard_size": shard_size}, f"{name}.json")
    shards = max(1, -(-len(source) // shard_size))
    paths = [folder / f"{name}-{k:05d}-of-{shards:05d}{ENDINGS[0]}" for k in range(shards)]
    for k, path in enumerate(tqdm(paths, "writing", delay=2, unit=" shards", leave=False)):
        if path.exists():
            continue
        rows = []
        with writing(path) as add:
            for i in range(k * shard_size, min((k + 1) * shard_size, len(source))):
                try:
                    record = source[i]
                except OSError:
                    continue
                add(encode(record))
                rows.append(_row(record))
        stat = path.stat()
        Table.from_rows(rows).save(index_path(path), [stat.st_size, stat.st_mtime_ns])
    return paths


def agree(folder: Path, settings: Mapping[str, Any], name: str = "manifest.json") -> None:
    """Stores the settings of a folder's files. Raises SourceError if the folder has other settings stored.

    Several processes may begin at the same time; one of them writes the settings.
    """
    now, path = json.loads(json.dumps(dict(settings))), folder / name
    if not path.exists():
        with contextlib.suppress(FileExistsError):  # another process was faster
            write_file(path, (json.dumps(now, indent=1) + "\n").encode(), what="writing the settings")
    with doing("reading the settings", path):
        before = json.loads(path.read_text())
    changed = [f"{key} {before.get(key)!r}, now {now.get(key)!r}" for key in now if now[key] != before.get(key)]
    if changed:
        raise SourceError(
            f"{folder} was made with other settings ({'; '.join(changed)}); use the old settings, or write into "
            "another folder"
        )


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Callable[[bytes], Any]]:
    """Yields a function that adds a record to a new ArrayRecord file. The file gets its name if the block succeeds."""
    from array_record.python.array_record_module import ArrayRecordWriter

    with new_file(path, overwrite=True, what="writing the records") as partial, foreign():
        writer = ArrayRecordWriter(str(partial), OPTIONS)
        try:
            yield writer.write
        except BaseException:
            with contextlib.suppress(RuntimeError):
                writer.close()
            raise
        writer.close()


def _index(file: str) -> Table:
    reader = open_reader([file])
    rows = []
    for i in range(len(reader)):
        try:
            rows.append(_row(decode(record_bytes(reader, i, file), f"record {i} of {file}")))
        except OSError:
            rows.append({"width": 0, "height": 0})  # damaged: left out, like a file that is not a picture
    return Table.from_rows(rows)


def _row(record: Record) -> dict[str, Any]:
    import io

    width, height = picture_size(io.BytesIO(record.image))
    caption = record.captions[0] if record.captions else None
    return {**scalars(record.columns), "caption": caption, "width": width, "height": height}


def main(argv: Sequence[str] | None = None) -> None:
    """Writes pictures into ArrayRecord files; see --help."""
    from sdjax.train.data.sources import KINDS, open_source

    parser = argparse.ArgumentParser(prog="python -m sdjax.train.data.array_records", description=main.__doc__)
    parser.add_argument("out", help="the folder to write into")
    kind = parser.add_mutually_exclusive_group(required=True)
    for name, (_, text) in KINDS.items():
        kind.add_argument(f"--{name}", help=text)
    parser.add_argument("--caption", help="the column that holds the captions")
    parser.add_argument("--default", help="the caption of pictures that have none")
    parser.add_argument("--shard-size", type=int, default=10_000, help="pictures a file (default: 10000)")
    args = parser.parse_args(argv)
    spec = {name: getattr(args, name) for name in (*KINDS, "caption", "default") if getattr(args, name) is not None}
    try:
        paths = write(open_source(spec), args.out, shard_size=args.shard_size)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {sentence(error)}") from None
    print(f"{len(paths)} files in {args.out}")


if __name__ == "__main__":
    main()
