"""A command's input pictures and masks: a file, or a folder of files with masks beside them."""

import functools
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sdjax.scripts.shared import options
from sdjax.scripts.shared.job import note


class Given(NamedTuple):
    """A picture or mask from a file: uint8 pixels, and the file's path and hash."""

    path: Path
    pixels: Any
    sha256: str
    notices: Sequence[str] = ()

    def describe(self) -> dict[str, Any]:
        """Returns the file's name, hash and size in pixels, for a picture's settings."""
        height, width = self.pixels.shape[:2]
        return {"name": self.path.name, "sha256": self.sha256, "width": width, "height": height}


def read_pictures(path: str, background: Sequence[int]) -> list[Given]:
    """Returns the picture, or all pictures of a folder sorted by name. Notes report changes made while reading.

    Raises ValueError for a missing file and a file that is not a picture.
    """
    from sdjax import pictures

    files = pictures.list_pictures(path) if Path(path).is_dir() else [Path(path)]
    opened = functools.partial(pictures.open_picture, background=background)
    read = [_read(file, "--init-img", opened) for file in files]
    if tuple(background) != options.WHITE and not any(
        "transparency" in notice for one in read for notice in one.notices
    ):
        note(f"--background has no effect on {path}, because nothing is transparent: leave it out")
    return read


def read_foregrounds(path: str) -> list[Given]:
    """Returns the picture, or all pictures of a folder sorted by name, with their transparent parts in grey.

    Raises ValueError for a missing file and a file that is not a picture.
    """
    from sdjax import pictures
    from sdjax.tasks.relight import GREY

    files = pictures.list_pictures(path) if Path(path).is_dir() else [Path(path)]
    opened = functools.partial(pictures.open_picture, background=(GREY,) * 3)
    return [_read(file, "--init-img", opened) for file in files]


def read_masks(path: str | None, given: Sequence[Given]) -> list[Given]:
    """Returns one mask for each picture: the file `path` for all, or NAME_mask.* for picture NAME.

    Masks are beside the pictures, or in the folder `path`, where they may also have the pictures' names. Raises
    ValueError for a missing mask, a file that is not a mask, and a mask of another size than its picture.
    """
    from sdjax import pictures

    masks = []
    for picture in given:
        file = Path(path) if path is not None and not Path(path).is_dir() else pictures.find_mask(picture.path, path)
        if file is None:
            stem, place = picture.path.stem, path or picture.path.parent
            raise ValueError(
                f"{picture.path}: no mask is given; name one with --mask, or put {stem}_mask.png into {place} (white "
                "is replaced)"
            )
        size = picture.pixels.shape[:2]
        masks.append(_read(file, "--mask", functools.partial(pictures.open_mask, size=size)))
    return masks


def read_picture(path: Path, flag: str) -> Given:
    """Returns a picture on white. Raises ValueError for a missing file and a file that is no picture."""
    from sdjax import pictures

    return _read(path, flag, pictures.open_picture)


def read_map(path: Path, flag: str) -> Given:
    """Returns a map, float32 [h, w], from a file. Raises ValueError for a missing file and a file that is no map."""
    from sdjax import pictures

    def opened(path: Path) -> pictures.Picture:
        values, notices = pictures.open_map(path)
        return pictures.Picture(values, notices)

    return _read(path, flag, opened)


def reason(error: OSError) -> str:
    """Returns the system's words for an error of reading a file."""
    return os.strerror(error.errno) if error.errno else str(error)


def _read(path: Path, flag: str, opened: Callable[[Path], Any]) -> Given:
    try:
        picture = opened(path)  # first: it refuses devices and endless files
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ValueError(f"{flag} {path} cannot be read: {reason(error)}") from None
    for notice in picture.notices:
        note(f"{path}: {notice}")
    return Given(path, picture.pixels, digest, picture.notices)
