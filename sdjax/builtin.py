"""The models inside the package: where they lie, and how they are opened (docs/built-in-model.md)."""

import dataclasses
import importlib.resources
from pathlib import Path
from typing import Any

from sdjax.config import ModelConfig
from sdjax.convert.errors import CheckpointError
from sdjax.tokenizer import Tokenizer

NAME, INPAINTING = NAMES = ("builtin", "builtin-inpainting")
_SMALL = "a small one that draws emoji on plain backgrounds, 64 x 64 pixels"
NOTICE = f"no checkpoint was named, so the model inside the package was taken: {_SMALL}"
NOTICES = {
    NAME: NOTICE,
    INPAINTING: f"no checkpoint was named, so the inpainting model inside the package was taken: {_SMALL}",
}
FOLDER = Path(str(importlib.resources.files("sdjax")), "assets", NAME)


def folder() -> Path:
    """Returns the native folder of the built-in model. Raises CheckpointError if this copy of sdjax has none."""
    if not (FOLDER / "config.json").is_file():
        raise CheckpointError(
            "this copy of sdjax holds no model of its own; name a checkpoint (--ckpt on the command line, or "
            "sdjax.load(path)), or train one with `make train-builtin`",
            FOLDER,
        )
    return FOLDER


def changes() -> Path:
    """Returns the file of the UNet's parameters that are others in the model for inpainting; raises as `folder`."""
    file = folder().with_name(f"{INPAINTING}.safetensors")
    if not file.is_file():
        raise CheckpointError(
            "this copy of sdjax holds no inpainting model of its own; the built-in one inpaints by blending "
            f"(--ckpt {NAME} on the command line, or sdjax.load())",
            file,
        )
    return file


def place(name: str) -> Path:
    """Returns the path that says which model a name is."""
    return folder() if name == NAME else changes()


def inpainting() -> tuple[dict[str, Any], ModelConfig, Tokenizer]:
    """Returns parameters by path, description and tokenizer of the model for inpainting, the base's where they are
    the same. Raises CheckpointError if this copy of sdjax has none.
    """
    from sdjax.convert.model import load_model
    from sdjax.convert.reading import read

    changed, base = read(changes()), load_model(folder())
    arrays = {path: leaf.read() for path, leaf in base.leaves.items()} | {name: changed[name] for name in changed}
    unet = dataclasses.replace(base.config.unet, in_channels=arrays["unet/conv_in/kernel"].shape[2])
    return arrays, dataclasses.replace(base.config, name=INPAINTING, unet=unet), base.tokenizer()
