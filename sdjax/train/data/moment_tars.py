"""Tar shards of latents, as MLCommons distributes them for Stable Diffusion: `000000012.npy` beside `000000012.txt`.

The .npy file holds the autoencoder's moments of one picture, [2 c, h, w]: the means of c channels, then their log
variances. The .txt file holds the caption. Each shard is read once from start to end; after that, files are read at
their offsets. The offsets are kept in a table beside the shard.
"""

import copy
import io
import math
import os
import tarfile
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from sdjax.storage.text_files import decode, lines
from sdjax.train.data.order import Stream
from sdjax.train.data.pictures import BadPicture, draws
from sdjax.train.data.records import SourceError, as_captions
from sdjax.train.data.table import Table, index_path, kept
from sdjax.train.data.tags import UNCHANGED, CaptionConfig
from sdjax.train.data.tars import Shard, shard_names

ENDING = ".tar"
TYPES = (np.dtype(np.float16), np.dtype(np.float32))
HEAD = 4096  # bytes of a .npy file that hold its header; NumPy writes 128
MOST = 2**26  # bytes of one picture's moments: those of 16384 x 16384 pixels
MOST_TEXT = 2**16  # bytes of a caption


def are_tars(names: Sequence[str]) -> bool:
    """Returns whether names of latents are tar shards, by their ending, and not folders of a cache."""
    return any(str(name).endswith(ENDING) for name in names)


class MomentTars:
    """The latents of tar shards for the loader; `names` are as `shard_names` takes them, and end in .tar.

    Batches hold `moments` float16 [b, h, w, 2 c], `caption` and `key`; the loader makes `ids` of the captions. A size
    with fewer than `least` pictures (the batch size) is left out. `captions` says how captions change. The sizes of
    `streams` are those of the latents, and after `of_model` those of the pictures.

    Raises SourceError for shards that cannot be read, or that hold no latents.
    """

    text = "ids"

    def __init__(
        self, names: Sequence[str], *, least: int = 1, captions: CaptionConfig = UNCHANGED,
        index_folder: str | os.PathLike[str] | None = None,
    ):  # fmt: skip
        others = [str(name) for name in names if not are_tars([name])]
        if others:
            raise SourceError(f"latents are tar shards or caches, and not both: {others[0]} does not end in {ENDING}")
        self.name, self.captions = str(names[0]), captions
        self.shards = [Shard(name) for name in shard_names([str(name) for name in names])]
        tables = []
        for shard in self.shards:
            build = lambda shard=shard: _index(shard)  # noqa: E731
            tables.append(kept(index_path(shard.name, index_folder), [shard.stamp(), "moments"], build))
        table = Table.join(tables)
        if not len(table):
            raise SourceError(f"{self.name} holds no latents; its shards hold NAME.npy and NAME.txt")
        self.ends = np.cumsum([len(one) for one in tables])
        self.stems, self.texts, self.table = table["_key"], table["caption"], table
        self.places = np.stack([table["_npy"], table["_npy_size"]], 1).astype(np.int64)
        self.channels = int(table["channels"][0])
        if len(odd := np.flatnonzero(table["channels"] != self.channels)):
            raise SourceError(
                f"{self.place(0, int(odd[0]))} has {int(table['channels'][odd[0]])} channels and the first "
                f"{self.channels}: they are of different autoencoders"
            )
        self.left_out: Counter[str] = Counter()
        self.notices = [f"{self.name}: shards do not say which autoencoder made them; sdjax takes it for the model's"]
        sizes = np.stack([table["width"], table["height"]], 1).astype(np.int64)
        self.streams: list[Stream] = []
        for w, h in np.unique(sizes, axis=0).tolist():
            members = np.flatnonzero((sizes == (w, h)).all(1))
            if len(members) < least:
                self.left_out[f"{w} x {h} has fewer than {least}"] += len(members)
            else:
                self.streams.append(Stream(0, (w, h), members, 1.0))
        if not self.streams:
            raise SourceError(f"{self.name} holds no size of which there are {least} pictures")

    def of_model(self, channels: int, factor: int) -> "MomentTars":
        """Returns the same for a model whose latents have `channels`, and are smaller than pictures by `factor`.

        Raises SourceError if the shards hold latents of other channels.
        """
        if self.channels != 2 * channels:
            raise SourceError(
                f"{self.name} holds moments of {self.channels} channels, and the model's latents have {channels}, "
                f"which are {2 * channels} of mean and variance: these are latents of another autoencoder"
            )
        sized = copy.copy(self)
        sized.table = self.table  # which copying leaves out, as pickling does
        sized.streams = [stream._replace(size=tuple(factor * side for side in stream.size)) for stream in self.streams]
        return sized

    def place(self, part: int, index: int) -> str:
        """Returns the place of a record: its name in the shard, without the ending, and the shard."""
        return f"{self.stems[index]} in {self._shard(index).name}"

    def load(self, part: int, index: int, size: tuple[int, ...], visit: int, seed: int) -> dict[str, Any]:
        """Returns one picture's latents and caption. Raises BadPicture if its file is damaged."""
        shard = self._shard(index)
        offset, length = (int(number) for number in self.places[index])
        try:
            moments = _moments(shard.read(offset, length))
        except (ValueError, OSError) as error:
            raise BadPicture(str(error)) from None
        if moments.shape[-1] != self.channels or not np.isfinite(moments).all():
            raise BadPicture(f"moments of {moments.shape} that were not there before, or are not finite")
        key = f"{shard.stem}/{self.stems[index]}"
        texts = as_captions(lines(self.texts[index])) or ("",)
        caption = texts[int(draws(seed, key, visit).caption * len(texts))]
        return {"moments": moments, "caption": self.captions(caption, seed, key, visit), "key": key}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "table": None}

    def _shard(self, index: int) -> Shard:
        return self.shards[int(np.searchsorted(self.ends, index, side="right"))]


def _moments(data: bytes) -> np.ndarray:
    """Returns the moments of a .npy file, float16 [h, w, 2 c]. Raises ValueError for any other file."""
    shape, dtype, start, by_columns = _head(data, len(data))
    array = np.frombuffer(data, dtype, offset=start).reshape(shape, order="F" if by_columns else "C")
    with np.errstate(over="ignore"):  # found by the check for finite numbers
        return np.ascontiguousarray(np.moveaxis(array, 0, -1)).astype(np.float16)


def _head(data: bytes, size: int) -> tuple[tuple[int, int, int], np.dtype, int, bool]:
    """Returns the shape [2 c, h, w] in a .npy file's header, its type, where its numbers begin, and their order.

    `data` are the first bytes of a file of `size` bytes. A leading axis of 1 is left out. Raises ValueError for
    anything else than moments.
    """
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, by_columns, dtype = reader(file, max_header_size=HEAD)
    except (ValueError, KeyError, TypeError, EOFError, SyntaxError, OverflowError) as error:
        raise ValueError(f"it is no .npy file of numbers ({error})") from None
    shape = shape[1:] if len(shape) == 4 and shape[0] == 1 else shape
    if len(shape) != 3 or shape[0] % 2 or min(shape) < 1 or dtype.newbyteorder("=") not in TYPES:
        raise ValueError(f"moments are float16 or float32 [2 c, h, w]; it holds {dtype} {list(shape)}")
    if math.prod(shape) * dtype.itemsize != size - file.tell() or size > MOST:
        raise ValueError(f"its header says {list(shape)} {dtype}, which its {size} bytes are not")
    return shape, dtype, file.tell(), by_columns


def _index(shard: Shard) -> Table:
    groups: dict[str, dict[str, Any]] = {}
    try:
        with shard.open() as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if member.isreg() and not member.issparse():
                    _add(groups, tar, member, shard.name)
    except (tarfile.TarError, EOFError) as error:
        raise SourceError(
            f"{shard.name} is no whole tar file ({error}); fetch it again, and unpack it if it is compressed"
        ) from None
    without = [stem for stem, group in groups.items() if "channels" in group and "caption" not in group]
    if without:
        raise SourceError(f"{without[0]}.npy in {shard.name} has no caption: {without[0]}.txt is not there")
    return Table.from_rows([group for group in groups.values() if "channels" in group])


def _add(groups: dict[str, dict[str, Any]], tar: tarfile.TarFile, member: tarfile.TarInfo, name: str) -> None:
    folder, slash, base = member.name.rpartition("/")
    stem, _, ending = base.partition(".")  # WebDataset's rule: a key ends at the first dot
    if not stem or ending not in ("npy", "txt"):
        return
    group = groups.setdefault(folder + slash + stem, {"_key": folder + slash + stem})
    content: Any = tar.extractfile(member)
    place = f"{member.name} in {name}"
    if ending == "txt":
        if member.size > MOST_TEXT:
            raise SourceError(f"{place} has {member.size} bytes, which is no caption: captions have up to {MOST_TEXT}")
        try:
            group["caption"] = decode(content.read(), place)
        except ValueError as error:
            raise SourceError(str(error)) from None
        return
    try:
        (channels, height, width), _, _, _ = _head(content.read(HEAD), member.size)
    except ValueError as error:
        raise SourceError(f"{place}: {error}") from None
    group |= {"channels": channels, "height": height, "width": width}
    group |= {"_npy": member.offset_data, "_npy_size": member.size}
