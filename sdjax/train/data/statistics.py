"""What a training set holds: folders, tags and sizes, in terms of JSON, for the metadata of what is trained on it."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from sdjax.train.data.cached import Cached
from sdjax.train.data.moment_tars import MomentTars
from sdjax.train.data.order import Order, Stream
from sdjax.train.data.pictures import Pictures

MOST_RECORDS = 200_000  # of a set whose folders and tags are counted
MOST_FOLDERS, MOST_TAGS = 200, 2000  # that are kept, the most frequent tags of each folder: a file's header is bounded
LONGEST = 100  # characters of a tag; longer ones are sentences


def set_statistics(examples: Cached | MomentTars | Pictures, batch_size: int) -> dict[str, Any]:
    """Returns the statistics of a training set.

    - `folders`: {name: {"pictures": how many, "repeats": how often an epoch shows each}}. The name is that of the
      folder that holds a picture, or that of the source if it is no folder.
    - `tags`: {name: {tag: number of pictures}} of the first captions, split at commas, in lower case.
    - `sizes`: [[width, height, number of pictures that an epoch shows], ...].
    - `batches`: batches of an epoch.

    `folders` and `tags` are empty for a set of more than MOST_RECORDS records.
    """
    pictures: Counter[str] = Counter()
    repeats: dict[str, float] = {}
    tags: dict[str, Counter[str]] = defaultdict(Counter)
    sizes: Counter[tuple[int, ...]] = Counter()
    few = sum(len(stream.members) for stream in examples.streams) <= MOST_RECORDS
    for stream in examples.streams:
        sizes[stream.size] += round(stream.rate * len(stream.members))
        for folder, caption in _records(examples, stream) if few else ():
            if len(pictures) >= MOST_FOLDERS and folder not in pictures:
                continue
            pictures[folder] += 1
            repeats[folder] = stream.rate
            tags[folder].update(sorted(set(_tags(caption))))
    return {
        "folders": {
            name: {"pictures": count, "repeats": _whole(repeats[name])} for name, count in sorted(pictures.items())
        },
        "tags": {name: dict(tags[name].most_common(MOST_TAGS)) for name in sorted(tags)},
        "sizes": [[*size, count] for size, count in sorted(sizes.items())],
        "batches": Order(examples.streams, batch_size, seed=0).batches_per_epoch,
    }


def _records(examples: Cached | MomentTars | Pictures, stream: Stream) -> Iterator[tuple[str, str | None]]:
    """Yields the folder and the first caption of each of a stream's records."""
    if isinstance(examples, Cached):
        source, table = examples.caches[stream.part].name, examples.caches[stream.part].table
    elif isinstance(examples, MomentTars):
        source, table = examples.name, examples.table
    else:
        source, table = examples.parts[stream.part].source.name, examples.parts[stream.part].source.table
    of_source = Path(source).name or source
    captions = table["caption"][stream.members]
    files = table["file_name"][stream.members] if "file_name" in table.kinds else [""] * len(captions)
    for file, caption in zip(files, captions):
        yield PurePosixPath(file or "").parent.name or of_source, caption


def _tags(caption: str | None) -> list[str]:
    return [tag for part in (caption or "").lower().split(",") if 0 < len(tag := part.strip()) <= LONGEST]


def _whole(value: float) -> int | float:
    return int(value) if np.isclose(value, round(value)) else round(value, 4)
