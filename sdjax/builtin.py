"""Where the model inside the package lies (docs/built-in-model.md)."""

import importlib.resources
from pathlib import Path

from sdjax.convert.errors import CheckpointError

NOTICE = (
    "no checkpoint was named, so the model inside the package was taken: a small one that draws emoji on plain "
    "backgrounds, 64 x 64 pixels"
)


FOLDER = Path(str(importlib.resources.files("sdjax")), "assets", "builtin")


def folder() -> Path:
    """Returns the native folder of the built-in model. Raises CheckpointError if this copy of sdjax has none."""
    if not (FOLDER / "config.json").is_file():
        raise CheckpointError(
            "this copy of sdjax holds no model of its own; name a checkpoint (--ckpt on the command line, or "
            "sdjax.load(path)), or train one with `make train-builtin`",
            FOLDER,
        )
    return FOLDER
