"""Reads TensorFlow Datasets without TensorFlow, if they were prepared as ArrayRecord."""

import io
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sdjax.storage import addresses, buckets
from sdjax.train.data.records import CAPTION_COLUMNS, Record, SourceError, as_captions, scalars
from sdjax.train.data.table import Table, index_path, kept, picture_size


class TfdsRecords:
    """A split of a TensorFlow Dataset. Pictures are the stored files, not decoded.

    Args:
        name: as `tfds.data_source` takes it, such as "oxford_flowers102" or "my_set:1.0.0".
        split: such as "train" or "train[10%:]".
        image: the column of pictures, by default the only one.
        caption: the column of captions, with texts or a ClassLabel; by default text, caption, captions or the only
            ClassLabel.
        template: the caption of a class, with its name in place of `{}`, such as "a photo of a {}"; `_` and `-` in the
            name become spaces.

    Raises SourceError if the dataset is not found or has another format, or if columns are missing or ambiguous.
    """

    def __init__(
        self, name: str, *, split: str = "train", data_dir: str | os.PathLike | None = None, image: str | None = None,
        caption: str | None = None, template: str = "a photo of a {}", default: str | None = None,
        index_folder: str | os.PathLike | None = None,
    ):  # fmt: skip
        self.name, self.split, self.template, self.default = name, split, template, default
        builder = _builder(name, data_dir)
        features = builder.info.features
        self.image = _only(image, _of_type(features, "Image"), "picture", "image", self.name, features)
        labels = _of_type(features, "ClassLabel")
        known = [column for column in CAPTION_COLUMNS if column in features]
        self.caption = None
        if caption is not None or default is None or known or len(labels) == 1:
            choices = known[:1] or labels
            self.caption = _only(caption, choices, "caption", "caption", self.name, features)
        self.classes = {label: list(features[label].names) for label in labels}
        self.data = _data_source(builder, split, self.image)
        stamp = [str(builder.info.full_name), split, len(self.data), self.image, self.caption, template]
        where = index_path(f"tfds://{builder.info.full_name}/{split}/{builder.data_dir}", index_folder)
        self.table = kept(where, stamp, self._index)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> Record:
        try:
            example = self.data[int(i)]
        except (ValueError, RuntimeError, IndexError) as error:  # a wrong checksum
            raise OSError(f"record {i} of {self.name} is damaged ({_first_line(error)})") from None
        columns = {column: self._plain(column, value) for column, value in example.items() if column != self.image}
        captions = self._captions(columns, i)
        if isinstance(columns.get(self.caption), bytes):  # already checked to be text
            columns[self.caption] = columns[self.caption].decode()
        return Record(f"{self.name}/{self.split}/{i}", bytes(example[self.image]), captions, columns)

    def place(self, i: int) -> str:
        """Returns the record's number in its split."""
        return f"record {i} of {self.name}/{self.split}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "table": None}

    def _plain(self, column: str, value: Any) -> Any:
        """Returns a value as a plain Python value: class names for numbers, text for bytes; lists stay lists."""
        if column in self.classes and np.ndim(value) == 0:
            return self.classes[column][int(value)] if value >= 0 else None
        if isinstance(value, bytes):
            return value if column == self.caption else value.decode(errors="replace")
        if isinstance(value, np.ndarray | np.generic):
            value = value.tolist()
            return self._plain(column, value) if isinstance(value, bytes) else value
        return value

    def _captions(self, columns: Mapping[str, Any], i: int) -> tuple[str, ...]:
        value = columns.get(self.caption) if self.caption is not None else None
        if value is not None and self.caption in self.classes:
            value = self.template.replace("{}", value.replace("_", " ").replace("-", " "))
        captions = as_captions(value, self.place(i)) if value is not None else ()
        return captions if captions or self.default is None else (self.default,)

    def _index(self) -> Table:
        from tqdm.auto import tqdm

        rows: list[dict[str, Any]] = []
        for i in tqdm(range(len(self)), "measuring", delay=2, unit=" pictures", leave=False):
            try:
                record = self[i]
            except OSError:
                rows.append({"width": 0, "height": 0})  # damaged: left out, like a file that is not a picture
                continue
            width, height = picture_size(io.BytesIO(record.image))
            caption = record.captions[0] if record.captions else None
            rows.append({**scalars(record.columns), "caption": caption, "width": width, "height": height})
        return Table.from_rows(rows)


def _builder(name: str, data_dir: str | os.PathLike | None) -> Any:
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise SourceError(
            "TensorFlow Datasets are read with their own package: in the clone of sdjax, pip install '.[train]'"
        ) from None
    if addresses.remote(data_dir):  # fetch only this dataset's part
        own = name.partition(":")[0].partition("/")[0]
        data_dir = buckets.fetch(f"{addresses.address(data_dir)}/{own}", "fetching the dataset").parent
    try:
        return tfds.builder(name, data_dir=None if data_dir is None else os.fspath(data_dir))
    except (tfds.core.registered.DatasetNotFoundError, ValueError, OSError) as error:
        where = "" if data_dir is None else f" in {data_dir}"
        raise SourceError(f"there is no TensorFlow Dataset {name!r}{where} ({_first_line(error)})") from None


def _data_source(builder: Any, split: str, image: str) -> Any:
    import tensorflow_datasets as tfds

    full = builder.info.full_name
    stored = builder.info.file_format
    if stored is not None and stored.value != "array_record":
        raise SourceError(
            f"the TensorFlow Dataset {full} lies in {builder.data_dir} as {stored.value}, which only TensorFlow reads; "
            f"prepare it again with tfds.builder({builder.name!r}, file_format='array_record', data_dir=...)"
            ".download_and_prepare(), in another data_dir"
        )
    if not builder.is_prepared():
        raise SourceError(
            f"the TensorFlow Dataset {full} is not prepared in {builder.data_dir}; run tfds.builder({builder.name!r}, "
            "file_format='array_record', data_dir=...).download_and_prepare() once"
        )
    try:
        return builder.as_data_source(split=split, decoders={image: tfds.decode.SkipDecoding()})
    except (ValueError, KeyError, AssertionError, NotImplementedError) as error:
        splits = ", ".join(builder.info.splits)
        raise SourceError(
            f"the split {split!r} of {full} cannot be read ({_first_line(error)}); its splits: {splits}"
        ) from None


def _of_type(features: Mapping[str, Any], kind: str) -> list[str]:
    return [name for name, feature in features.items() if type(feature).__name__ == kind]


def _only(
    named: str | None, choices: Sequence[str], what: str, option: str, dataset: str, features: Mapping[str, Any]
) -> str:
    """Returns the named column or, without a name, the only choice. Raises SourceError, listing the columns."""
    listed = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in features.items())
    if named is not None:
        if named not in features:
            raise SourceError(f"{dataset} has no column {named!r}; it has {listed}")
        return named
    if len(choices) != 1:
        problem = "no column that could be" if not choices else f"{len(choices)} columns that could be"
        raise SourceError(f"{dataset} has {problem} the {what}; set {option!r} to one of {listed}")
    return choices[0]


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
