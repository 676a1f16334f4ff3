"""The names of files in a run's folder. Independent of training code, so importing it is fast."""

import pathlib
from typing import Any

from sdjax.storage import addresses, buckets

SETTINGS, BASE, CHECKPOINTS = "settings.json", "base", "checkpoints"
ADAPTER, EMBEDDINGS = "adapter.safetensors", "embeddings"  # what was learned beside the model ...
CONTROL, IMAGE_PROMPT = "controlnet.safetensors", "ip_adapter.safetensors"  # ... and networks of their own
DATASET = "dataset.json"  # what the training set holds: sdjax.train.data.statistics
METRICS = "metrics"  # results of evaluations during training
REFERENCE = "base.json"  # replaces BASE if the start model was not copied


def workdir(path: Any) -> Any:
    """Returns the folder of a run as a pathlib.Path, or as an etils.epath.Path for gs://bucket/run.

    Raises AddressError for an address of another kind, ModuleNotFoundError if gcsfs is missing.
    """
    if addresses.scheme(path) == "s3":
        raise addresses.AddressError(
            f"{path} cannot hold a training: Orbax, which writes the checkpoints, supports only gs:// addresses. "
            "Give a folder; a bucket can be mounted as one (`mount-s3 BUCKET FOLDER`)"
        )
    return buckets.place(path, ("gs",))


def absolute(path: Any) -> Any:
    """Returns a folder in the form that Orbax needs: an absolute path, or an address. Raises as `workdir`."""
    folder = workdir(path)
    return folder.resolve() if isinstance(folder, pathlib.Path) else folder


def make_folder(folder: Any) -> None:
    """Makes a folder and its parents. A bucket needs no folders, so nothing is made there."""
    if isinstance(folder, pathlib.Path):
        folder.mkdir(parents=True, exist_ok=True)


def is_run(path: Any) -> bool:
    """Returns whether a path is the folder of a training."""
    try:
        folder = workdir(path)
        return (folder / SETTINGS).is_file() and keeps_model(folder)
    except (TypeError, OSError, ValueError):
        return False


def keeps_model(folder: pathlib.Path) -> bool:
    """Returns whether a run's folder has its start model, or a reference to it."""
    return (folder / BASE / "config.json").is_file() or (folder / REFERENCE).is_file()
