"""The built-in models inside the package: where they are, and how they are loaded (docs/built-in-model.md)."""

import dataclasses
import importlib.resources
from pathlib import Path
from typing import Any

from sdjax import convert
from sdjax.config import ModelConfig
from sdjax.convert.bundle import Bundle
from sdjax.convert.containers.places import BUILTIN
from sdjax.convert.containers.reading import read
from sdjax.convert.describe.choices import ConfigLike
from sdjax.convert.errors import CheckpointError

NAME, INPAINTING = NAMES = BUILTIN
EDGES = "builtin-edges"  # the ControlNet for edges and outlines, a control-LoRA of the built-in model
_SMALL = "a small one that draws emoji on plain backgrounds, 64 x 64 pixels"
NOTICE = f"no checkpoint was named, so the built-in model is used: {_SMALL}"
NOTICES = {
    NAME: NOTICE,
    INPAINTING: f"no checkpoint was named, so the built-in inpainting model is used: {_SMALL}",
}
FOLDER = Path(str(importlib.resources.files("sdjax")), "assets", NAME)


def folder() -> Path:
    """Returns the native folder of the built-in model. Raises CheckpointError if this copy of sdjax has none."""
    if not (FOLDER / "config.json").is_file():
        raise CheckpointError(
            "this copy of sdjax has no built-in model; name a checkpoint (--ckpt on the command line, or "
            "sdjax.load(path)), or train one with `make train-builtin`",
            FOLDER,
        )
    return FOLDER


def whole(name: str) -> Path:
    """Returns the folder of the built-in model `name`. Raises CheckpointError if no folder holds the whole model."""
    if name == INPAINTING:
        raise CheckpointError(
            f'{name} is built when it is loaded; sdjax.load("{name}").save(OUT) writes it as a file or folder'
        )
    return folder()


def changes() -> Path:
    """Returns the file of those UNet parameters that differ in the inpainting model. Raises as `folder`."""
    file = changes_of(folder())
    if not file.is_file():
        raise CheckpointError(
            "this copy of sdjax has no built-in inpainting model; the built-in model inpaints by blending "
            f"(--ckpt {NAME} on the command line, or sdjax.load())",
            file,
        )
    return file


def changes_of(folder: Path) -> Path:
    """Returns the path of that file, beside a model's folder."""
    return folder.with_name(f"{folder.name}-inpainting.safetensors")


def control(name: str) -> Path:
    """Returns the file of the built-in ControlNet `name`. Raises CheckpointError if this copy of sdjax has none."""
    file = FOLDER.with_name(f"{name}.safetensors")
    if not file.is_file():
        raise CheckpointError("this copy of sdjax has no built-in ControlNet; name a file", file)
    return file


def inpainting_config(model: ModelConfig) -> ModelConfig:
    """Returns the description of the inpainting model that is made from `model`."""
    unet = dataclasses.replace(model.unet, in_channels=1 + 2 * model.vae.latent_channels)
    return dataclasses.replace(model, name=f"{model.name}-inpainting", unet=unet)


def place(name: str) -> Path:
    """Returns the path of the built-in model `name`."""
    return folder() if name == NAME else changes()


def load_model(name: str, config: ConfigLike | None = None, **given: Any) -> Bundle:
    """Returns the built-in model `name`. The arguments are those of `sdjax.convert.load_model`.

    Raises CheckpointError if this copy of sdjax does not have it.
    """
    if name == NAME:
        return convert.load_model(folder(), config, **given)
    changed, base = read(changes()), convert.load_model(folder())
    arrays = {path: leaf.read() for path, leaf in base.leaves.items()} | {path: changed[path] for path in changed}
    model = convert.load_model(arrays, inpainting_config(base.config) if config is None else config, **given)
    return dataclasses.replace(model, own_tokenizer=base.own_tokenizer, licences=base.licences, cards=base.cards)
