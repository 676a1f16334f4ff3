"""Finds data of packages that the user installed. Their code is not run."""

import importlib.util
from pathlib import Path


def folder_of(package: str, name: str) -> Path | None:
    """Returns the folder `name` of an installed package; None if it is not there."""
    found = importlib.util.find_spec(package)
    for place in (found.submodule_search_locations or []) if found is not None else []:
        if (Path(place) / name).is_dir():
            return Path(place) / name
    return None
