"""What lies in the folder of a run, by name; knows nothing of training, so that reading one costs nothing."""

import pathlib
from typing import Any

from sdjax.storage import addresses, buckets

SETTINGS, BASE, CHECKPOINTS = "settings.json", "base", "checkpoints"
REFERENCE = "base.json"  # in the place of BASE, where the start model was not copied


def workdir(path: Any) -> Any:
    """Returns the folder of a run to work with: a pathlib.Path, or an etils.epath.Path of gs://bucket/run.

    Raises AddressError for an address of another kind, ModuleNotFoundError where gcsfs is missing.
    """
    if addresses.scheme(path) == "s3":
        raise addresses.AddressError(
            f"{path} cannot hold a training: Orbax, which writes the checkpoints, reaches gs:// and no other address. "
            "Give a folder; a bucket can be mounted as one (`mount-s3 BUCKET FOLDER`)"
        )
    return buckets.place(path, ("gs",))


def absolute(path: Any) -> Any:
    """Returns a folder as Orbax takes it: absolute, or an address. Raises as `workdir`."""
    folder = workdir(path)
    return folder.resolve() if isinstance(folder, pathlib.Path) else folder


def make_folder(folder: Any) -> None:
    """Makes a folder and those that it is in. A bucket has none: there a file's name is enough."""
    if isinstance(folder, pathlib.Path):
        folder.mkdir(parents=True, exist_ok=True)


def is_run(path: Any) -> bool:
    """Says whether a path is the folder of a training."""
    try:
        folder = workdir(path)
        return (folder / SETTINGS).is_file() and keeps_model(folder)
    except (TypeError, OSError, ValueError):
        return False


def keeps_model(folder: pathlib.Path) -> bool:
    """Says whether a run's folder holds the model that it started from, or where that lies."""
    return (folder / BASE / "config.json").is_file() or (folder / REFERENCE).is_file()
