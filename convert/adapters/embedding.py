"""Reads textual inversions: files with the vectors of one word for the text encoder's table of tokens.

| written by | names in the file |
|---|---|
| A1111, the paper's code (.pt) | `string_to_param.*`, beside `string_to_token`, `name`, `step` |
| diffusers (.bin, .safetensors) | the word, [d] or [n, d] |
| safetensors of other trainers | `emb_params` |
| for Stable Diffusion XL | `clip_l` and `clip_g`; `clip_l` fits Stable Diffusion 1 |
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from sdjax.config import ModelConfig
from sdjax.convert.adapters.nested import flattened
from sdjax.convert.containers.lazy import is_floating
from sdjax.convert.containers.local_models import local_path
from sdjax.convert.containers.reading import read
from sdjax.convert.containers.webui_hashes import SHORT, file_hashes
from sdjax.convert.errors import CheckpointError, listed, printable, shown

MOST = 75  # vectors of a word: a chunk of a prompt holds no more
LARGEST = 2**28  # bytes of a file; the vectors of a word have less than a megabyte
_PARAM, _TOKEN = "string_to_param.", "string_to_token."
_NAMED = ("emb_params", "clip_l", "clip_h", "clip_g")
_MODELS = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 1280: "Stable Diffusion XL"}


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedEmbedding:
    """The vectors of a word, and what came with them.

    Attributes:
        word: what a prompt calls it: the file's name without its ending, if no other was asked for.
        vectors: float32 [n, d].
        metadata: texts and numbers of the file, such as its training's `step` and `sd_checkpoint_name`.
        token: the word in the file itself, "" if it has none.
        short_hash: the 12 digits that A1111 writes of its file beside a picture, "" without a file.
    """

    word: str
    vectors: np.ndarray
    metadata: Mapping[str, str]
    token: str = ""
    short_hash: str = ""

    def lines(self) -> list[str]:
        """Returns its facts as lines."""
        n, width = self.vectors.shape
        facts = [f"embedding of a word: {n} vectors of {width} numbers, for {_MODELS.get(width, 'another model')}"]
        facts += [f"word in the file: {printable(self.token)}"] if self.token else []
        return [*facts, f"hash in A1111's texts: {self.short_hash}"] if self.short_hash else facts


def load_embedding(
    source: str | os.PathLike[str] | Mapping[Any, Any], config: ModelConfig | None = None, *, word: str | None = None
) -> LoadedEmbedding:
    """Returns the vectors of a word, for the text encoder of models of this description (None: of any model).

    `source` is a file; or what torch.load returns of it, with arrays for tensors, and then `word` is needed. Nothing in
    a file is executed.

    Raises CheckpointError for a file that cannot be read, that holds no word or several, and for vectors that are not
    finite or of another model's width.
    """
    if isinstance(source, Mapping):
        arrays, texts = flattened(source)
        return _embedding(arrays, texts, config, "" if word is None else word, None)
    path = local_path(source)
    with read(path) as file:
        if sum(stored.nbytes for stored in file.tensors.values()) > LARGEST:
            raise CheckpointError(f"it is too large for the vectors of a word (more than {LARGEST} bytes)", path)
        arrays = {name: np.array(stored.array()) for name, stored in file.tensors.items()}
        texts = dict(file.metadata)
    loaded = _embedding(arrays, texts, config, path.stem if word is None else word, path)
    return dataclasses.replace(loaded, short_hash=file_hashes(path).whole[:SHORT])


def _embedding(
    arrays: Mapping[str, np.ndarray], texts: Mapping[str, str], config: ModelConfig | None, word: str,
    path: pathlib.Path | None,
) -> LoadedEmbedding:  # fmt: skip
    token, vectors = _chosen(arrays, None if config is None else config.text.width, word, path)
    vectors = vectors[None] if vectors.ndim == 1 else vectors
    if vectors.ndim != 2 or not vectors.size or not is_floating(vectors.dtype):
        raise CheckpointError(f"the vectors of {shown(word)} are [n, d]; they are {list(vectors.shape)}", path)
    vectors = vectors.astype(np.float32)
    if not np.isfinite(vectors).all():
        raise CheckpointError(f"the vectors of {shown(word)} have numbers that are not finite", path)
    most = MOST if config is None else config.text.max_length - 2
    if len(vectors) > most:
        raise CheckpointError(f"{shown(word)} has {len(vectors)} vectors; a prompt takes up to {most} a word", path)
    if config is not None and vectors.shape[1] != config.text.width:
        trained = _MODELS.get(vectors.shape[1])
        raise CheckpointError(
            f"the embedding {shown(word)} has vectors of {vectors.shape[1]} numbers"
            f"{f', for {trained}' if trained else ''}; the text encoder of this model ({config.name}) takes "
            f"{config.text.width}",
            path,
        )
    return LoadedEmbedding(word, vectors, dict(texts), token)


def _chosen(
    arrays: Mapping[str, np.ndarray], width: int | None, word: str, path: pathlib.Path | None
) -> tuple[str, np.ndarray]:
    """Returns the word in the file, "" if it has none, and the vectors."""
    params = {name.removeprefix(_PARAM): array for name, array in arrays.items() if name.startswith(_PARAM)}
    if not params:
        named = {name: arrays[name] for name in _NAMED if name in arrays}
        if named:
            fitting = [array for array in named.values() if array.ndim and array.shape[-1] == width]
            return "", [*fitting, *named.values()][0]
        params = {name: array for name, array in arrays.items() if not name.startswith(_TOKEN)}
    if not params:
        raise CheckpointError("it holds no vectors of a word", path)
    if len(params) > 1:
        raise CheckpointError(
            f"{shown(word)} holds the vectors of several words ({listed([shown(name) for name in params], ', ')}); a "
            "file has those of one",
            path,
        )
    ((token, vectors),) = params.items()
    return ("" if token == "*" else token), vectors
