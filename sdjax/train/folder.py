"""What lies in the folder of a run, by name; knows nothing of training, so that reading one costs nothing."""

import pathlib
from typing import Any

SETTINGS, BASE, CHECKPOINTS = "settings.json", "base", "checkpoints"


def is_run(path: Any) -> bool:
    """Says whether a path is the folder of a training."""
    try:
        folder = pathlib.Path(path)
        return (folder / SETTINGS).is_file() and (folder / BASE / "config.json").is_file()
    except (TypeError, OSError, ValueError):
        return False
