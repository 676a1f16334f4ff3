"""Reads a cache of latents, for the loader."""

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sdjax.storage import buckets
from sdjax.train.data.array_records import open_reader, record_bytes, unpack
from sdjax.train.data.cache import MANIFEST, shard_path
from sdjax.train.data.filters import select
from sdjax.train.data.order import Stream
from sdjax.train.data.pictures import REPEATS, BadPicture, draws
from sdjax.train.data.records import SourceError
from sdjax.train.data.table import Table
from sdjax.train.data.tags import UNCHANGED, CaptionConfig


class Cached:
    """The latents of one or several caches for the loader.

    Batches hold `moments` float16 [b, h, w, 2 c], `ids` int32 [b, n] or `context` float16 [b, n, d], `caption` and
    `key`. The n-th time a picture is shown, it uses variant n modulo their number, and one of its captions. Each of
    `folders` is shown `repeats` times an epoch. `where` is a filter over the columns, including `width` and `height` in
    pixels as encoded. A size with fewer than `least` pictures (the batch size) is left out.

    If `captions` changes captions, batches have no `ids`: the loader makes them of the changed texts.

    Raises SourceError if a cache is not finished, if the caches were made with different settings, or if captions are
    to change that are held as the text encoder's output.
    """

    def __init__(
        self, folders: str | os.PathLike | Sequence[str], *, where: str | None = None,
        repeats: float | Sequence[float] = 1.0, least: int = 1, captions: CaptionConfig = UNCHANGED,
    ):  # fmt: skip
        several = [folders] if isinstance(folders, str | os.PathLike) else list(folders)
        if isinstance(repeats, int | float):  # a folder that is named twice counts once
            several = list({os.path.realpath(folder): folder for folder in reversed(several)}.values())[::-1]
        rates = (
            [float(repeats)] * len(several) if isinstance(repeats, int | float) else [float(rate) for rate in repeats]
        )
        self.caches = [_Cache(Path(buckets.here(folder, "fetching the latents of"))) for folder in several]
        self.captions = captions
        if captions.changes and self.text != "ids":
            raise SourceError(f"{several[0]} holds captions as context, which cannot change: make it with text ids")
        self.left_out: Counter[str] = Counter()
        self.notices: list[str] = []
        for name in ("model", "text", "tokens"):
            if len({cache.manifest[name] for cache in self.caches}) > 1:
                raise SourceError(f"{', '.join(map(str, several))} were made with another {name}: make them again")
        if len(rates) != len(several) or min(rates) <= 0:
            raise SourceError(f"repeats are above 0, one for all caches or one for each; got {repeats}")
        streams: list[Stream] = []
        for part, (cache, rate) in enumerate(zip(self.caches, rates)):
            streams += self._streams(part, cache, where, rate)
        shown = Counter[tuple[int, ...]]()
        for stream in streams:
            shown[stream.size] += int(stream.rate * len(stream.members))
        self.streams = [stream for stream in streams if shown[stream.size] >= least]
        for stream in streams:
            if shown[stream.size] < least:
                w, h = stream.size
                self.left_out[f"{w} x {h} has fewer than {least}"] += len(stream.members)
        if not self.streams:
            raise SourceError(f"{', '.join(map(str, several))} hold no size of which there are {least} pictures")

    @property
    def text(self) -> str:
        """How the caches hold captions: "ids" or "context"."""
        return self.caches[0].manifest["text"]

    def _streams(self, part: int, cache: "_Cache", where: str | None, rate: float) -> list[Stream]:
        table = cache.table
        first = table["_variant"] == 0  # of each picture
        chosen = np.ones(len(table), bool) if where is None else select(where, table)
        self.left_out.update({f"filtered by {where}": int((first & ~chosen).sum())} if where is not None else {})
        for reason, number in cache.bad.items():
            self.left_out[reason] += number
        sizes = np.stack([table["width"], table["height"]], 1).astype(np.int64)
        repeats = table[REPEATS] if REPEATS in table.kinds else np.ones(len(table))
        repeats = np.where(np.isnan(repeats), 1.0, repeats)
        streams = []
        for w, h in np.unique(sizes[first & chosen], axis=0):
            here = first & chosen & (sizes == (w, h)).all(1)
            for often in np.unique(repeats[here]):
                members = np.flatnonzero(here & (repeats == often))
                streams.append(Stream(part, (int(w), int(h)), members, rate * float(often)))
        return streams

    def place(self, part: int, index: int) -> str:
        """Returns the place of a record, for messages."""
        return f"record {index} of {self.caches[part].name}"

    def load(self, part: int, index: int, size: tuple[int, ...], visit: int, seed: int) -> dict[str, Any]:
        """Returns one picture's latents and text. Raises BadPicture if its record is damaged."""
        cache = self.caches[part]
        try:
            data = record_bytes(cache.reader, index + visit % cache.manifest["variants"], cache.name)
            tensors, texts = unpack(data, cache.name)
        except (ValueError, OSError) as error:
            raise BadPicture(str(error)) from None
        name = cache.manifest["text"]
        caption = int(draws(seed, texts["key"], visit).caption * len(texts["captions"]))
        example = {
            "moments": tensors["moments"],
            "caption": self.captions(texts["captions"][caption], seed, texts["key"], visit),
            "key": texts["key"],
        }
        return example if self.captions.changes else {**example, name: tensors[name][caption]}


class _Cache:
    """One folder: its manifest, its table, and its records by number."""

    def __init__(self, folder: Path):
        self.name = str(folder)
        try:
            self.manifest = json.loads((folder / MANIFEST).read_text())
        except FileNotFoundError:
            raise SourceError(f"{folder} is no cache of latents: it holds no {MANIFEST}") from None
        shards = self.manifest["shards"]
        paths = [shard_path(folder, k, shards) for k in range(shards)]
        missing = [path.name for path in paths if not path.exists()]
        if missing:
            raise SourceError(
                f"{folder} is not finished: {len(missing)} of {shards} shards are missing, such as {missing[0]}; run "
                "the same command as before, which goes on from there"
            )
        heads = [json.loads(path.with_suffix(".json").read_text()) for path in paths]
        self.bad: Counter[str] = Counter()
        for head in heads:
            self.bad.update(head["bad"])
        full = [(path, head["records"]) for path, head in zip(paths, heads) if head["records"]]
        if not full:
            raise SourceError(f"{folder} holds no latents: all pictures were bad ({dict(self.bad)})")
        tables = [Table.load(path.with_suffix(".npz"), records) for path, records in full]
        lost = [path.with_suffix(".npz").name for (path, _), table in zip(full, tables) if table is None]
        if lost:
            raise SourceError(f"{folder}: {lost[0]} is damaged; remove its shard and run the same command again")
        self.table = Table.join([table for table in tables if table is not None])
        self.reader = open_reader([str(path) for path, _ in full])
        if len(self.reader) != len(self.table):
            raise SourceError(f"{folder}: its shards hold {len(self.reader)} records, their tables {len(self.table)}")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "table": None}
