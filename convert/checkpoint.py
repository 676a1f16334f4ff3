"""An opened checkpoint: its tensors, and the files and metadata that describe them."""

import dataclasses
import functools
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from sdjax.config import ModelConfig
from sdjax.convert.containers import carried
from sdjax.convert.containers.lazy import LazyTensor
from sdjax.convert.containers.local_models import local_path
from sdjax.convert.containers.mapped import MappedFile
from sdjax.convert.containers.reading import TensorFile, read_path
from sdjax.convert.containers.scaled import with_scales
from sdjax.convert.errors import CheckpointError, printable
from sdjax.convert.names import naming
from sdjax.convert.names.naming import Layout
from sdjax.convert.names.spelling import standard_names
from sdjax.prompts.tokenizer import Tokenizer

FORMAT = "sdjax"  # the key of a native folder's config.json that says so
EXTRA = "extra.safetensors"  # tensors of another format that are no parameters, under the names they had there
MAX_TEXT = 2**20

CheckpointLike = str | os.PathLike[str] | Mapping[str, ArrayLike]  # what a checkpoint may be given as


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, opened: nothing of its tensors' numbers is read yet.

    Attributes:
        tensors: by the names that ldm's or diffusers' files have for them; each knows the name that this file has.
        format: the container, as `TensorFile.format`; "tensors" for a mapping in memory.
        extra: a folder's tensors that are no parameters of the model.
    """

    layout: Layout
    tensors: Mapping[str, LazyTensor]
    format: str = "tensors"
    path: pathlib.Path | None = None
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)
    configs: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    extra: Mapping[str, LazyTensor] = dataclasses.field(default_factory=dict)
    licences: Mapping[str, str] = dataclasses.field(default_factory=dict)
    cards: Mapping[str, str] = dataclasses.field(default_factory=dict)
    tokenizer: Tokenizer | None = None
    notices: tuple[str, ...] = ()

    @functools.cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The tensors' shapes by name."""
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    @property
    def native(self) -> Mapping[str, Any]:
        """The contents of a native folder's config.json; nothing for other layouts."""
        return self.configs.get("config.json", {}) if self.layout == "native" else {}

    def native_config(self) -> ModelConfig:
        """Returns the description in a native folder's config.json. Raises ConfigError."""
        model: Any = self.native.get("model")
        return ModelConfig.from_dict(model)

    @property
    def files(self) -> Mapping[str, Mapping[str, Any]]:
        """A diffusers folder's JSON files by path; a native folder carries those of the one it was made of."""
        return self.native.get("files", {}) if self.layout == "native" else self.configs

    def error(self, reason: str) -> CheckpointError:
        """Returns the exception to raise: the reason with the checkpoint's name before it."""
        return CheckpointError(reason, self.path)


def open_checkpoint(source: CheckpointLike, variant: str | None = None) -> Checkpoint:
    """Returns the checkpoint at a path, or the one whose tensors a mapping gives. Raises CheckpointError."""
    if isinstance(source, TensorFile):
        return _of_file(source, ())
    if isinstance(source, Mapping):
        tensors = _under_standard_names(with_scales(_in_memory(source)))
        return Checkpoint(_layout_of(tensors, {}), tensors)
    notices: list[str] = []
    path = local_path(source, variant=variant, say=notices.append)
    return _of_file(read_path(path, variant), tuple(notices))


def _in_memory(arrays: Mapping[str, ArrayLike]) -> Iterator[LazyTensor]:
    for name, array in arrays.items():
        held: Any = array if hasattr(array, "dtype") else np.asarray(array)  # a device's array stays there until read
        yield LazyTensor(tuple(held.shape), np.dtype(held.dtype), functools.partial(np.asarray, held), name=name)


def _under_standard_names(tensors: Iterable[LazyTensor]) -> dict[str, LazyTensor]:
    """Returns tensors by the names that ldm's or diffusers' files have for them."""
    own = {tensor.name: tensor for tensor in tensors}
    names = standard_names(own)
    return {names.get(name, name): tensor for name, tensor in own.items()}


def _of_file(file: TensorFile, notices: tuple[str, ...]) -> Checkpoint:
    path, configs = file.path, file.configs
    is_folder = file.format.startswith("diffusers")
    tensors = _under_standard_names(with_scales(file.lazy()))
    layout = _layout_of(tensors, configs)
    metadata, tokenizer, extra = dict(file.metadata), None, {}
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
            extra = {tensor.name: tensor for tensor in read_path(path / EXTRA).lazy()}
    else:
        licences = carried.unpacked_texts(metadata, carried.LICENCE_KEY, carried.LICENCE) or licence_files(path.parent)
        cards = carried.unpacked_texts(metadata, carried.CARD_KEY, carried.CARD) or card_files(path.parent, alone=True)
        if carried.TOKENIZER_KEY in metadata:
            tokenizer = carried.unpacked_tokenizer(
                metadata[carried.TOKENIZER_KEY], lambda reason: CheckpointError(reason, path)
            )
    metadata = {key: value for key, value in metadata.items() if key == carried.CONFIG_KEY or key not in carried.KEYS}
    return Checkpoint(layout, tensors, file.format, path, metadata, configs, extra, licences, cards, tokenizer, notices)


def _layout_of(names: Mapping[str, Any], configs: Mapping[str, Mapping[str, Any]]) -> Layout:
    if FORMAT in configs.get("config.json", {}):
        return "native"
    if "model_index.json" in configs:
        return "diffusers"
    whole = any(name.startswith((naming.LDM_PREFIXES["unet"], naming.EMA_PREFIX)) for name in names)
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
