"""What a checkpoint brings: its tensors, and what lies in or beside it that says what they are."""

import dataclasses
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from sdjax.convert.containers import carried
from sdjax.convert.containers.local_models import local_path
from sdjax.convert.containers.mapped import MappedFile
from sdjax.convert.containers.reading import TensorFile, read
from sdjax.convert.errors import CheckpointError, printable
from sdjax.convert.names import keys, tables
from sdjax.convert.names.spelling import standard_names
from sdjax.prompts.tokenizer import Tokenizer

FORMAT = "sdjax"  # the key of a native folder's config.json that says so
EXTRA = "extra.safetensors"  # tensors of another format that are no parameters, under the names they had there
MAX_TEXT = 2**20


class Arrays(Mapping[str, np.ndarray]):
    """Tensors in memory, with what `TensorFile` tells about a file's."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self._arrays = dict(arrays)
        self.shapes = {name: tuple(array.shape) for name, array in self._arrays.items()}
        self.dtypes = {name: np.dtype(array.dtype) for name, array in self._arrays.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        return np.asarray(self._arrays[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def release(self, name: str) -> None:
        """Does nothing: who made the arrays holds them."""


class Renamed(Mapping[str, np.ndarray]):
    """Tensors under other names than they are stored under; `stored` has the old name of each new one."""

    def __init__(self, tensors: "TensorFile | Arrays", names: Mapping[str, str]) -> None:
        self._tensors = tensors
        self.stored = {names.get(name, name): name for name in tensors}
        self.shapes = {name: tensors.shapes[old] for name, old in self.stored.items()}
        self.dtypes = {name: tensors.dtypes[old] for name, old in self.stored.items()}
        self.format = getattr(tensors, "format", "tensors")

    def __getitem__(self, name: str) -> np.ndarray:
        return self._tensors[self.stored[name]]

    def __contains__(self, name: object) -> bool:  # Mapping's own would read the tensor
        return name in self.stored

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)

    def release(self, name: str) -> None:
        """Gives the memory that a tensor's pages take back to the system."""
        self._tensors.release(self.stored[name])


def _under_standard_names(tensors: "TensorFile | Arrays") -> "TensorFile | Arrays | Renamed":
    names = standard_names(tensors)
    return Renamed(tensors, names) if names else tensors


@dataclasses.dataclass(frozen=True)
class Source:
    """A checkpoint, opened. `extra` are a folder's tensors that are no parameters of the model."""

    layout: tables.Layout
    tensors: TensorFile | Arrays | Renamed
    path: pathlib.Path | None = None
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)
    configs: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    extra: TensorFile | None = None
    licences: Mapping[str, str] = dataclasses.field(default_factory=dict)
    cards: Mapping[str, str] = dataclasses.field(default_factory=dict)
    tokenizer: Tokenizer | None = None
    notices: tuple[str, ...] = ()

    @property
    def native(self) -> Mapping[str, Any] | None:
        """The contents of a native folder's config.json."""
        return self.configs.get("config.json") if self.layout == "native" else None

    def spelled(self, name: str) -> str:
        """Returns a tensor's name as the file spells it."""
        return self.tensors.stored.get(name, name) if isinstance(self.tensors, Renamed) else name

    def equal(self, one: str, other: str) -> bool:
        """Returns whether the tensors of two names have the same type, shape and bytes."""
        a, b = self.tensors[one], self.tensors[other]
        same = a.dtype == b.dtype and a.shape == b.shape and np.array_equal(_bytes(a), _bytes(b))
        self.tensors.release(one)
        self.tensors.release(other)
        return same

    def error(self, reason: str) -> CheckpointError:
        """Returns the exception to raise: the reason with the checkpoint's name before it."""
        return CheckpointError(reason, self.path)


def _bytes(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def open_source(source: Any, variant: str | None = None) -> Source:
    """Returns the checkpoint at a path, or the one whose tensors a mapping gives. Raises CheckpointError."""
    if isinstance(source, TensorFile):
        return _of_file(source)
    if isinstance(source, Mapping):
        arrays = _under_standard_names(Arrays(source))
        return Source(_layout_of(arrays, {}), arrays)
    notices: list[str] = []
    path = local_path(source, variant=variant, say=notices.append)
    return dataclasses.replace(_of_file(read(path, variant=variant)), notices=tuple(notices))


def _of_file(file: TensorFile) -> Source:
    path, configs = file.path, file.configs
    is_folder = file.format.startswith("diffusers")
    tensors = _under_standard_names(file)
    layout = _layout_of(tensors, configs)
    metadata, tokenizer, extra = dict(file.metadata), None, None
    if is_folder:
        licences, cards = licence_files(path), card_files(path)
        if layout == "diffusers":
            metadata = _of_components(metadata)
        if (path / "tokenizer").is_dir():
            try:
                tokenizer = Tokenizer.load(path / "tokenizer")
            except ValueError as error:
                raise CheckpointError(str(error), path) from error
        if (path / EXTRA).exists():
            extra = read(path / EXTRA)
    else:
        licences = carried.unpacked_texts(metadata, carried.LICENCE_KEY, carried.LICENCE) or licence_files(path.parent)
        cards = carried.unpacked_texts(metadata, carried.CARD_KEY, carried.CARD) or card_files(path.parent, alone=True)
        if carried.TOKENIZER_KEY in metadata:
            tokenizer = carried.unpacked_tokenizer(
                metadata[carried.TOKENIZER_KEY], lambda reason: CheckpointError(reason, path)
            )
    metadata = {key: value for key, value in metadata.items() if key == carried.CONFIG_KEY or key not in carried.KEYS}
    return Source(layout, tensors, path, metadata, configs, extra, licences, cards, tokenizer)


def _layout_of(names: Mapping[str, Any], configs: Mapping[str, Mapping[str, Any]]) -> tables.Layout:
    if FORMAT in configs.get("config.json", {}):
        return "native"
    if "model_index.json" in configs:
        return "diffusers"
    whole = any(name.startswith((keys.LDM_PREFIXES["unet"], keys.EMA_PREFIX)) for name in names)
    if not whole and "unet/conv_in/kernel" in names:
        return "native"
    if not whole and any("/" in name for name in names):
        return "diffusers"
    return "ldm"


def _of_components(metadata: Mapping[str, str]) -> dict[str, str]:
    """Returns a folder's metadata as a single file would hold them: what the UNet's file says is the model's."""
    out = {}
    for key, value in metadata.items():
        component, _, name = key.partition("/")
        if name != "format":
            out[name if component == "unet" else key] = value
    return out


def licence_files(folder: pathlib.Path) -> dict[str, str]:
    """Returns the licence texts that lie in a folder, by file name."""
    return _texts(folder, carried.LICENCE)


def card_files(folder: pathlib.Path, *, alone: bool = False) -> dict[str, str]:
    """Returns the model card that lies in a folder, by file name; `alone` if a single file's, which begins with "---".

    A README.md beside a single file may be of anything; a model card of the hub begins with YAML between such lines.
    """
    texts = _texts(folder, carried.CARD)
    return {name: text for name, text in texts.items() if not alone or text.startswith("---")}


def _texts(folder: pathlib.Path, names: re.Pattern[str]) -> dict[str, str]:
    texts = {}
    try:
        found = sorted(name for name in os.listdir(folder) if names.fullmatch(name))
    except OSError:
        return {}
    for name in found[: carried.MAX_TEXTS]:
        try:
            file = MappedFile(folder / name)
        except CheckpointError:
            continue  # a folder of that name, an empty file
        try:
            if file.size <= MAX_TEXT:
                texts[printable(name)] = file.bytes(0, file.size).decode("utf-8")
        except UnicodeDecodeError:
            continue
        finally:
            file.close()
    return texts
