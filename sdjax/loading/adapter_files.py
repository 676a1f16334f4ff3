"""Writes what a run learned beside its model: an adapter's or a ControlNet's file, and one for each new word."""

import functools
import pathlib
import re

import numpy as np

from sdjax.config import ModelConfig
from sdjax.convert.adapters.write import write_adapter
from sdjax.convert.containers.lazy import LazyTensor
from sdjax.convert.write.controlnet import write_controlnet
from sdjax.convert.write.ip_adapter import write_ip_adapter
from sdjax.convert.write.safetensors_writer import write_safetensors
from sdjax.loading.run_layout import ADAPTER, CONTROL, EMBEDDINGS, IMAGE_PROMPT
from sdjax.loading.trainable import Addition
from sdjax.loading.trainable.control import NETWORK, ControlTraining
from sdjax.loading.trainable.image_prompt import ImagePromptTraining
from sdjax.loading.training_metadata import run_metadata
from sdjax.nn.controlnet import of_unet
from sdjax.storage.files import new_file
from sdjax.typing import Params


def write_files(
    folder: pathlib.Path, trainable: Addition, learned: Params, model: ModelConfig, step: int
) -> list[pathlib.Path]:
    """Writes the files of what was learned into a folder, replacing older ones, and returns their paths.

    ADAPTER holds the changes, in kohya's names, CONTROL a ControlNet, in diffusers' names, and IMAGE_PROMPT an
    IP-Adapter. EMBEDDINGS is a folder
    with a file for each word, as diffusers writes them. Their metadata are those of the run in the folder.
    """
    written = []
    changes = trainable.changes(learned)
    if changes:
        path = folder / ADAPTER
        told = run_metadata(folder, model, name=folder.resolve().name, step=step)
        write_adapter(path, changes, model, metadata=told, overwrite=True)
        written.append(path)
    if isinstance(trainable, ControlTraining):
        path = folder / CONTROL
        net = of_unet(model.unet, factor=model.vae.factor, pooled=trainable.pooled)
        told = run_metadata(folder, model, name=folder.resolve().name, step=step, kind="controlnet")
        write_controlnet(path, net, learned[NETWORK], metadata=told, overwrite=True)
        written.append(path)
    if isinstance(trainable, ImagePromptTraining):
        path = folder / IMAGE_PROMPT
        told = run_metadata(folder, model, name=folder.resolve().name, step=step, kind="ip-adapter")
        write_ip_adapter(path, trainable.network(model), learned["ip_adapter"], metadata=told, overwrite=True)
        written.append(path)
    for word, rows in trainable.embeddings(learned).items():
        path = folder / EMBEDDINGS / f"{file_name(word)}.safetensors"
        if path in written:  # of another word with the same letters
            path = path.with_stem(f"{path.stem}-{len(written)}")
        told = run_metadata(folder, model, name=path.stem, step=step, kind="textual-inversion")
        path.parent.mkdir(exist_ok=True)
        vectors = np.asarray(rows, np.float32)
        tensor = LazyTensor(vectors.shape, vectors.dtype, functools.partial(np.asarray, vectors), name=word)
        with new_file(path, overwrite=True, what="writing the embedding") as partial:
            write_safetensors(partial, {word: tensor}, {**told, "format": "pt"}, aligned=False)
        written.append(path)
    return written


def file_name(word: str) -> str:
    """Returns a word without characters that file names cannot have, "cat" of "<cat>"."""
    return re.sub(r"[^\w.-]+", "", word).strip(".") or "word"
