"""The embeddings of pictures (textual inversion): by file, or by their names in the prompt from a folder."""

import base64
import binascii
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from sdjax.checks.arguments import shown
from sdjax.config import ModelConfig
from sdjax.convert.adapters.embedding import LoadedEmbedding, load_embedding
from sdjax.convert.containers.webui_hashes import SHORT
from sdjax.convert.errors import CheckpointError
from sdjax.pictures import png
from sdjax.pictures.metadata.texts import read_texts
from sdjax.pictures.samples import MAX_BYTES, PictureError
from sdjax.prompts.added_words import words_in
from sdjax.tasks.extra_files import files_below, read_once

ENDINGS = (".safetensors", ".pt", ".bin", ".ckpt", ".png")
CARD = "sd-ti-embedding"  # the text in a PNG
COMFYUI = "embedding:"  # before a name in ComfyUI's syntax

EmbeddingLike: TypeAlias = LoadedEmbedding | str | os.PathLike[str] | tuple[str, np.ndarray]


def read_embedding(given: EmbeddingLike, config: ModelConfig | None) -> LoadedEmbedding:
    """Returns the vectors of a word for a model of this description (None: of any).

    `given` is a file, "FILE" or "WORD=FILE"; what `sdjax.convert.load_embedding` returns; or a pair of a word and its
    vectors [n, d]. A file's word is its name without its ending. Raises ValueError for anything else, and
    `sdjax.convert.CheckpointError` for a file that cannot be used.
    """
    if isinstance(given, LoadedEmbedding):
        checked = load_embedding({given.word: given.vectors}, config, word=given.word)
        return dataclasses.replace(given, vectors=checked.vectors)
    if isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], str):
        return load_embedding({given[0]: np.asarray(given[1])}, config, word=_word(given[0]))
    if isinstance(given, str | os.PathLike):
        text = os.fspath(given)
        word, equals, path = text.partition("=")
        if not equals or os.path.exists(text):
            return read_file(text, config)
        return read_file(path, config, _word(word))
    raise ValueError(f"an embedding is FILE, WORD=FILE or a pair of a word and its vectors; got {shown(given)}")


def _word(text: str) -> str:
    if not text.strip() or text != text.strip():
        raise ValueError(f"the word of an embedding is a text without spaces around it; got {shown(text)}")
    return text


@read_once(64)
def read_file(path: str, config: ModelConfig | None, word: str | None = None) -> LoadedEmbedding:
    """Returns the embedding in a file, also in a card, a PNG of the web UI. It is read once while it does not change.

    Raises CheckpointError.
    """
    if os.path.isfile(path) and os.path.getsize(path) <= MAX_BYTES:
        with open(path, "rb") as file:
            if file.read(len(png.MAGIC)) == png.MAGIC:
                data = png.MAGIC + file.read()
                return _of_card(data, config, pathlib.Path(path).stem if word is None else word, path)
    return load_embedding(path, config, word=word)


def _of_card(data: bytes, config: ModelConfig | None, word: str, path: str) -> LoadedEmbedding:
    """Returns the embedding in a PNG's text. Raises CheckpointError."""
    try:
        text = read_texts(data).get(CARD)
        if text is None:
            raise CheckpointError(f"the picture holds no embedding: it has no text {CARD}", path)
        content = json.loads(base64.b64decode(text, validate=True), object_hook=_array)
    except (PictureError, binascii.Error, ValueError, TypeError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"the embedding in the picture cannot be read ({error})", path) from None
    if not isinstance(content, dict):
        raise CheckpointError("the embedding in the picture is not a JSON object", path)
    try:
        loaded = load_embedding(content, config, word=word)
        return dataclasses.replace(loaded, short_hash=hashlib.sha256(data).hexdigest()[:SHORT])
    except CheckpointError as error:
        raise CheckpointError(str(error), path) from None


def _array(value: dict[str, Any]) -> Any:
    """Returns a tensor of the card's JSON as an array, everything else as it is."""
    if set(value) != {"TORCHTENSOR"}:
        return value
    return np.asarray(value["TORCHTENSOR"], np.float32)


def embeddings_in(
    texts: Sequence[str], given: Iterable[EmbeddingLike], folder: str | None, bundled: Iterable[Mapping[str, Any]],
    config: ModelConfig | None, syntax: str, known: Iterable[str] = (),
) -> tuple[LoadedEmbedding, ...]:  # fmt: skip
    """Returns the embeddings whose words stand in texts, with the words as they are spelled there.

    They are those `given`, those of a `folder` and the folders in it, whose words are the files' names, and those
    `bundled` with adapters. In ComfyUI's syntax a word is `embedding:NAME`, also with the file's ending. `known` are
    words that the model has already. Raises ValueError if a word that is used has two embeddings.
    """
    sources: dict[str, list[Any]] = {}
    for one in given:
        loaded = read_embedding(one, config)
        sources.setdefault(loaded.word.lower(), []).append(loaded)
    for words in bundled:
        for word, vectors in words.items():
            sources.setdefault(word.lower(), []).append((word, vectors))
    for path in () if folder is None else _files(folder):
        sources.setdefault(path.stem.lower(), []).append(path)
    spelled = {word: word for word in sources}
    if syntax == "comfyui":
        endings = ("", *ENDINGS)
        spelled = {f"{COMFYUI}{word}{ending}": word for word in sources for ending in endings}
    taken = {word.lower() for word in known}
    out = {}
    for word in dict.fromkeys(found.lower() for text in texts for found in words_in(text, spelled)):
        found = sources[spelled[word]]
        if len(found) > 1 or word in taken:
            raise ValueError(
                f"two embeddings have the name {spelled[word]!r}: "
                f"{' and '.join(map(_source, found)) if len(found) > 1 else 'the model has such a word itself'}; "
                "rename one, or name its file by WORD=FILE"
            )
        (source,) = found
        if isinstance(source, pathlib.Path):
            source = read_file(str(source), config)
        elif isinstance(source, tuple):
            source = read_embedding(source, config)
        out[word] = dataclasses.replace(source, word=word)
    return tuple(out.values())


def _source(source: Any) -> str:
    return str(source) if isinstance(source, pathlib.Path) else "one that was given"


def _files(folder: str) -> tuple[pathlib.Path, ...]:
    """Returns the files of embeddings in a folder and below it. Raises ValueError if it is none."""
    try:
        status = os.stat(folder)
    except (OSError, ValueError) as error:
        raise ValueError(f"the folder of embeddings {folder} cannot be read ({error})") from None
    return _listed(folder, status.st_mtime_ns)


@functools.lru_cache(maxsize=2)
def _listed(folder: str, stamp: int) -> tuple[pathlib.Path, ...]:
    if not os.path.isdir(folder):
        raise ValueError(f"{folder} is no folder of embeddings")
    return tuple(path for path in files_below(folder) if path.name.lower().endswith(ENDINGS))
