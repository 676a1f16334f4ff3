"""Lists folders of pictures, and finds their masks and depth maps."""

import os
import re
from pathlib import Path

from sdjax.pictures.samples import PictureError
from sdjax.storage.addresses import local

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
MASKS = ("_mask", ".mask")  # NAME_mask.png as in CompVis's scripts/inpaint.py, NAME.mask.png
MAPS = ("_depth",)


def list_pictures(folder: str | os.PathLike) -> list[Path]:
    """Returns the folder's picture files in natural order (2 before 10), without masks and depth maps.

    Files are chosen by their ending. Hidden files, broken links and subfolders are ignored. NAME_mask.png is a mask and
    NAME_depth.png is a depth map only if there is a picture NAME. Raises PictureError if there is no picture or a link
    leads out of the folder, and OSError.
    """
    folder = Path(local(folder))
    names = _names(folder)
    stems = {Path(name).stem for name in names}
    chosen = [name for name in names if not any(_base(Path(name).stem, mark) in stems for mark in (*MASKS, *MAPS))]
    if not chosen:
        raise PictureError(f"{folder}: no picture is in this folder (files that end in {', '.join(SUFFIXES)})")
    return [folder / name for name in chosen]


def find_mask(picture: str | os.PathLike, masks: str | os.PathLike | None = None) -> Path | None:
    """Returns the mask of a picture NAME.*: NAME_mask.* or NAME.mask.* beside it, or one of these or NAME.* in `masks`.

    Returns None if there is none. Raises PictureError if there are several or a link leads out of the folder, and
    OSError.
    """
    folder = Path(local(picture)).parent if masks is None else Path(local(masks))
    return _find(Path(picture), folder, MASKS, "mask", own=masks is not None)


def find_map(picture: str | os.PathLike, maps: str | os.PathLike) -> Path | None:
    """Returns the depth map of a picture NAME.* in a folder, which may be its own: NAME_depth.* or NAME.*.

    None if there is none. Raises as `find_mask`.
    """
    return _find(Path(local(picture)), Path(local(maps)), MAPS, "depth map", own=True)


def _find(picture: Path, folder: Path, marks: tuple[str, ...], what: str, *, own: bool) -> Path | None:
    wanted = {picture.stem + mark for mark in marks} | ({picture.stem} if own else set())
    itself = os.path.realpath(picture)
    names = [name for name in _names(folder) if Path(name).stem in wanted]
    found = [name for name in names if os.path.realpath(folder / name) != itself]
    if len(found) > 1:
        raise PictureError(f"{picture}: more than one {what} is in {folder} ({', '.join(found)}); keep one of them")
    return folder / found[0] if found else None


def natural(name: str) -> tuple:
    """Returns a key to sort names by, digits as numbers and letters of either case alike."""
    parts = re.split("([0-9]+)", name)
    return [(int(part), "") if i % 2 else (-1, part.casefold()) for i, part in enumerate(parts)], name


def _names(folder: Path) -> list[str]:
    inside = os.path.realpath(folder)
    names = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or os.path.splitext(entry.name)[1].lower() not in SUFFIXES:
                continue
            if entry.is_symlink() and os.path.dirname(os.path.realpath(entry.path)) != inside:
                raise PictureError(f"{folder}: {entry.name} is a link that leads out of the folder; put the file there")
            if entry.is_file():
                names.append(entry.name)
            elif entry.is_symlink() and not os.path.lexists(os.path.realpath(entry.path)):
                continue  # a link to a picture that was removed
            elif not entry.is_dir():
                raise PictureError(f"{folder}: {entry.name} is no file but a pipe or a device")
    return sorted(names, key=natural)


def _base(stem: str, mark: str) -> str | None:
    return stem.removesuffix(mark) if stem.endswith(mark) else None
