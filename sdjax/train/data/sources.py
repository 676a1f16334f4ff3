"""Opens the sources of a training set that a configuration describes."""

from collections.abc import Mapping, Sequence
from typing import Any

from sdjax.train.data.array_records import ArrayRecords
from sdjax.train.data.from_tfds import TfdsRecords
from sdjax.train.data.image_folder import Folder
from sdjax.train.data.records import Source, SourceError
from sdjax.train.data.tars import TarShards

KINDS = {
    "folder": (Folder, "a folder of pictures, with metadata.jsonl, metadata.csv or NAME.txt beside each"),
    "records": (ArrayRecords, "ArrayRecord files, or a folder of them"),
    "tfds": (TfdsRecords, "a TensorFlow Dataset, by its name"),
    "tars": (TarShards, "tar shards, such as data/{00000..00099}.tar; names with :// through fsspec"),
}
_OPTIONS = {
    "folder": ("caption", "default", "index_folder"),
    "records": ("index_folder",),
    "tars": ("caption", "default", "index_folder"),
    "tfds": ("split", "data_dir", "image", "caption", "template", "default", "index_folder"),
}


def open_source(spec: Mapping[str, Any]) -> Source:
    """Returns the source that a mapping describes: one of KINDS with its path or name, and options of that kind.

    Examples: {"folder": "pictures", "caption": "text"}; {"tfds": "oxford_flowers102", "split": "train[:90%]"}. None
    stands for an option's default. Raises SourceError for unknown kinds and options, and any error of opening.
    """
    spec = {name: value for name, value in spec.items() if value is not None}
    kinds = [name for name in spec if name in KINDS]
    if len(kinds) != 1:
        raise SourceError(f"a source of pictures names one of {', '.join(KINDS)}; got {', '.join(spec) or 'nothing'}")
    kind = kinds[0]
    options = {name: value for name, value in spec.items() if name != kind}
    unknown = sorted(set(options) - set(_OPTIONS[kind]))
    if unknown:
        raise SourceError(
            f"a source of kind {kind} has no option {', '.join(unknown)}; it has {', '.join(_OPTIONS[kind])}"
        )
    path = spec[kind]
    if isinstance(path, Sequence) and not isinstance(path, str):
        path = list(path)  # configurations may hold tuples
    return KINDS[kind][0](path, **options)
