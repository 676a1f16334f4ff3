"""The files of adapters: found in a folder by name, each read once, also those of a training's folder."""

import dataclasses
import difflib
import os
import pathlib
from typing import NamedTuple

from sdjax.checks.arguments import shown
from sdjax.config import ModelConfig
from sdjax.convert.adapters.embedding import load_embedding
from sdjax.convert.adapters.info import info_of
from sdjax.convert.adapters.kinds import Dora
from sdjax.convert.adapters.load import Alpha0, LoadedAdapter, load_adapter
from sdjax.convert.errors import CheckpointError
from sdjax.loading.run_layout import ADAPTER, EMBEDDINGS, is_run
from sdjax.tasks.extra_files import files_below, folders_in, read_once

ENDINGS = (".safetensors", ".ckpt", ".pt", ".bin")


class Conventions(NamedTuple):
    """What an alpha of 0 and DoRA at weights other than 1 mean (`sdjax.convert.load_adapter`)."""

    alpha_0: Alpha0 = "none"
    dora: Dora = "linear"


USUAL = Conventions()


@read_once(8)
def read_file(path: str, config: ModelConfig, conventions: Conventions = USUAL) -> LoadedAdapter:
    """Returns the adapter in a file or folder, or of a training's folder. It is read once as long as it is the same.

    Raises CheckpointError if it cannot be used.
    """
    if os.path.isdir(path) and is_run(path):
        return _of_run(pathlib.Path(path), config, conventions)
    return load_adapter(path, config, **conventions._asdict())


def _of_run(folder: pathlib.Path, config: ModelConfig, conventions: Conventions) -> LoadedAdapter:
    """Returns what a training wrote beside its model: the adapter, with the vectors of the words that it learned."""
    name = folder.resolve().name
    words = sorted((folder / EMBEDDINGS).glob("*.safetensors"))
    if (folder / ADAPTER).is_file():
        loaded = load_adapter(folder / ADAPTER, config, **conventions._asdict())
    elif words:
        loaded = LoadedAdapter({}, info_of((), (), {}), {}, {})
    else:
        raise CheckpointError(
            f"the training has written no {ADAPTER}: it writes one when it ends, if it trains an adapter; to make "
            "pictures with the model that it trains, name the folder as the model (--ckpt)",
            folder,
        )
    learned = [load_embedding(path, config) for path in words]
    own = {one.token or one.word: one.vectors for one in learned}
    return dataclasses.replace(loaded, embeddings={**loaded.embeddings, **own}, name=name)


def find_file(folder: str, name: str) -> pathlib.Path:
    """Returns the file of this name, without its ending, in a folder or below it. Raises ValueError without one.

    `folder` may be several (`folders_in`): the first one that has the name counts.
    """
    stems: dict[str, pathlib.Path] = {}
    for root in folders_in(folder):
        if not root.is_dir():
            raise ValueError(f"{root} is no folder of adapters")
        for file in files_below(root):
            if file.name.endswith(ENDINGS):
                stems.setdefault(file.stem, file)
    if name not in stems:
        near = difflib.get_close_matches(name, stems, n=3)
        hint = f"; did you mean {' or '.join(map(shown, near))}?" if near else ""
        raise ValueError(f"{folder} has no adapter of the name {shown(name)}{hint}")
    return stems[name]
