"""The embeddings of pictures (textual inversion): by file, or by their names in the prompt from a folder."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from sdjax.checks.arguments import shown
from sdjax.config import ModelConfig
from sdjax.convert.adapters.embedding import LoadedEmbedding, load_embedding
from sdjax.pictures import png
from sdjax.pictures.samples import MAX_BYTES
from sdjax.prompts.added_words import words_in
from sdjax.tasks.extra_files import files_below, folders_in, read_once

ENDINGS = (".safetensors", ".pt", ".bin", ".ckpt", ".png")
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
    data = _picture(path)
    if data is not None:
        from sdjax.tasks.embedding_cards import load_card

        return load_card(data, config, pathlib.Path(path).stem if word is None else word, path)
    return load_embedding(path, config, word=word)


def _picture(path: str | os.PathLike[str]) -> bytes | None:
    """Returns the content of a PNG file, None for other files."""
    if not os.path.isfile(path) or os.path.getsize(path) > MAX_BYTES:
        return None
    with open(path, "rb") as file:
        return png.MAGIC + file.read() if file.read(len(png.MAGIC)) == png.MAGIC else None


def embeddings_in(
    texts: Sequence[str], given: Iterable[EmbeddingLike], folder: str | None, bundled: Iterable[Mapping[str, Any]],
    config: ModelConfig | None, syntax: str, known: Iterable[str] = (),
) -> tuple[LoadedEmbedding, ...]:  # fmt: skip
    """Returns the embeddings whose words stand in texts, with the words as they are spelled there.

    They are those `given`, those of a `folder` (`folders_in`) and the folders in it, whose words are the files' names,
    and those `bundled` with adapters. In ComfyUI's syntax a word is `embedding:NAME`, also with the file's ending.
    `known` are words that the model has already. Raises ValueError if a word that is used has two embeddings.
    """
    sources: dict[str, list[Any]] = {}
    for one in given:
        loaded = read_embedding(one, config)
        sources.setdefault(loaded.word.lower(), []).append(loaded)
    for words in bundled:
        for word, vectors in words.items():
            sources.setdefault(word.lower(), []).append((word, vectors))
    for place in () if folder is None else folders_in(folder):
        for path in _files(str(place)):
            sources.setdefault(path.stem.lower(), []).append(path)
    spelled = {word: word for word in sources}
    if syntax == "comfyui":
        endings = ("", *ENDINGS)
        spelled = {f"{COMFYUI}{word}{ending}": word for word in sources for ending in endings}
    taken = {word.lower() for word in known}
    out = {}
    for word in dict.fromkeys(found.lower() for text in texts for found in words_in(text, spelled)):
        found = [one for one in sources[spelled[word]] if not (isinstance(one, pathlib.Path) and _is_preview(str(one)))]
        if not found:
            continue
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


@read_once(256)
def _is_preview(path: str) -> bool:
    """Returns whether a file is a picture without an embedding, as tools lay beside those that have one."""
    data = _picture(path)
    if data is None:
        return False
    from sdjax.tasks.embedding_cards import is_card

    return not is_card(data)


def _source(source: Any) -> str:
    return str(source) if isinstance(source, pathlib.Path) else "one that was given"


def _files(folder: str) -> tuple[pathlib.Path, ...]:
    """Returns the files of embeddings in a folder and below it. Raises ValueError if it is none."""
    try:
        status = os.stat(folder)
    except (OSError, ValueError) as error:
        raise ValueError(f"the folder of embeddings {folder} cannot be read ({error})") from None
    return _listed(folder, status.st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _listed(folder: str, stamp: int) -> tuple[pathlib.Path, ...]:
    if not os.path.isdir(folder):
        raise ValueError(f"{folder} is no folder of embeddings")
    return tuple(path for path in files_below(folder) if path.name.lower().endswith(ENDINGS))
