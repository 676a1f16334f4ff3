"""Pixels and floats in [-1, 1], grids, and PNG files with settings that never overwrite other files.

`sdjax.pictures` opens pictures and `sdjax.pictures.movie` writes animations. Besides these three, only training imports
Pillow, for its data and drawings.
"""

import io
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image as PillowImage
from PIL import PngImagePlugin

from sdjax import errors
from sdjax.storage import files
from sdjax.storage.addresses import local
from sdjax.typing import Pixels

ArrayT = TypeVar("ArrayT", np.ndarray, Array)
WRITING = "writing the picture"
ROUNDINGS = {"truncate": np.trunc, "nearest": np.rint}


def to_uint8(image: Float[Array | np.ndarray, "..."], *, rounding: str = "truncate") -> UInt8[np.ndarray, "..."]:
    """Returns the pixels of an image in [-1, 1], of any shape. Values outside are clipped.

    The formula is 255 clip((x + 1) / 2, 0, 1), in float32. `rounding` "truncate" truncates as the scripts of both
    releases do (scripts/txt2img.py of CompVis/stable-diffusion); "nearest" rounds as diffusers does. Raises ValueError
    for values that are not numbers, and for an unknown rounding.
    """
    if rounding not in ROUNDINGS:
        raise ValueError(f"rounding is one of {', '.join(ROUNDINGS)}; got {rounding!r}")
    values = np.asarray(image, np.float32)
    if np.isnan(values).any():
        raise ValueError("the image holds values that are not numbers, so it has no pixels")
    scaled = np.clip((values + 1) / 2, 0, 1) * np.float32(255)
    return ROUNDINGS[rounding](scaled).astype(np.uint8)


def to_float(pixels: ArrayT) -> ArrayT:
    """Returns uint8 pixels p as an image in [-1, 1], float32: 2 (p / 255) - 1.

    A NumPy array gives a NumPy array and a JAX array a JAX array, so it can be compiled.
    """
    if pixels.dtype != np.uint8:
        raise ValueError(f"pixels are uint8; got {pixels.dtype}")
    return pixels.astype(np.float32) / np.float32(127.5) - np.float32(1)


def grid(pixels: Pixels, columns: int, *, padding: int = 2) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Returns pictures [b, h, w, 3] as one grid, row by row, with black lines of `padding` pixels around them.

    A single picture gets no lines. Source: torchvision's make_grid, which the scripts of both releases call.
    """
    b, h, w, c = pixels.shape
    if b < 1 or columns < 1:
        raise ValueError(f"a grid holds at least one picture in at least one column; got {b} in {columns}")
    if b == 1:
        return pixels[0]
    columns = min(columns, b)
    rows = -(-b // columns)
    out = np.zeros((rows * (h + padding) + padding, columns * (w + padding) + padding, c), pixels.dtype)
    for i, picture in enumerate(pixels):
        top, left = (padding + k * (side + padding) for k, side in zip(divmod(i, columns), (h, w)))
        out[top : top + h, left : left + w] = picture
    return out


def infotext(prompt: str, negative_prompt: str, fields: Mapping[str, Any]) -> str:
    """Returns the text that AUTOMATIC1111's web UI keeps in a PNG's `parameters` chunk, for other tools to read.

    It has the prompt, then the negative prompt if there is one, then `Key: value, ...` on the last line. Values with a
    comma, a colon or a line break are quoted as JSON. The text may be ambiguous, because a prompt may have such lines.
    """
    quoted = {key: str(value) for key, value in fields.items()}
    for key, value in quoted.items():
        if any(mark in value for mark in ",:\n"):
            quoted[key] = json.dumps(value, ensure_ascii=False)
    lines = [prompt]
    if negative_prompt:
        lines.append(f"Negative prompt: {negative_prompt}")
    lines.append(", ".join(f"{key}: {value}" for key, value in quoted.items()))
    return "\n".join(lines).strip()


def encode_png(pixels: np.ndarray, text: Mapping[str, str] | None = None) -> bytes:
    """Returns a PNG file of one picture [h, w, 3] with text chunks (keyword to text). The same input gives equal bytes.

    A map (16-bit grey) is uint16 [h, w]. Latin-1 text becomes a tEXt chunk, other text an iTXt chunk. Characters that
    UTF-8 cannot encode are replaced by `?`.
    """
    pixels = np.asarray(pixels)
    is_picture = pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[-1] == 3
    if not (is_picture or (pixels.dtype == np.uint16 and pixels.ndim == 2)) or 0 in pixels.shape:
        raise ValueError(f"a picture is uint8 [h, w, 3]; got {pixels.dtype} {list(pixels.shape)}")
    chunks = PngImagePlugin.PngInfo()
    for keyword, value in (text or {}).items():
        chunks.add_text(keyword, value.encode("utf-8", "replace").decode().replace("\0", "?"))
    out = io.BytesIO()
    PillowImage.fromarray(pixels).save(out, "PNG", pnginfo=chunks)
    return out.getvalue()


def pack(pixels: np.ndarray) -> bytes:
    """Returns a PNG file of uint8 [h, w], [h, w, 3] or [h, w, 4], from which `unpack` returns the same array."""
    out = io.BytesIO()
    PillowImage.fromarray(pixels).save(out, "PNG", compress_level=1)
    return out.getvalue()


def unpack(png: bytes) -> np.ndarray:
    """Returns the array of `pack`."""
    with PillowImage.open(io.BytesIO(png), formats=["PNG"]) as image:
        return np.asarray(image)


def save_png(path: str | os.PathLike, pixels: np.ndarray, text: Mapping[str, str] | None = None) -> None:
    """Writes a PNG file, whole or not at all. Raises FileExistsError if a file of that name exists."""
    save_file(path, encode_png(pixels, text))


def save_file(path: str | os.PathLike, data: bytes) -> None:
    """Writes a file, whole or not at all. Raises FileExistsError if a file of that name exists."""
    files.write_file(path, data, what=WRITING)


def save_numbered(
    folder: str | os.PathLike,
    pixels: np.ndarray,
    text: Mapping[str, str] | None = None,
    *,
    prefix: str = "",
    digits: int = 5,
) -> Path:
    """Writes a new PNG file named `prefix` + number, and returns its path. The number is one above the highest.

    The first number is 0. Nothing is overwritten, even if several processes write into the folder.
    """
    return save_numbered_file(folder, encode_png(pixels, text), ".png", prefix=prefix, digits=digits)


def save_numbered_file(
    folder: str | os.PathLike, data: bytes, suffix: str, *, prefix: str = "", digits: int = 5
) -> Path:
    """Writes `data` to a new file, numbered as in `save_numbered`, with this suffix, and returns its path."""
    with errors.doing(WRITING, folder, len(data)):
        return new_numbered(folder, suffix, lambda path: save_file(path, data), prefix=prefix, digits=digits)


def new_numbered(
    folder: str | os.PathLike, suffix: str, write: Callable[[Path], None], *, prefix: str = "", digits: int = 5
) -> Path:
    """Returns the path of a new file, numbered as in `save_numbered`, after `write(path)` has written it.

    `write` must raise FileExistsError if the path is taken; it is then called with the next number.
    """
    with files.folder_for(folder) as folder:
        number = _next_number(folder, prefix, digits, suffix)
        while True:
            path = folder / f"{prefix}{number:0{digits}}{suffix}"
            try:
                write(path)
                return path
            except FileExistsError:  # another process was faster
                number += 1


def new_folder(path: str | os.PathLike) -> Path:
    """Makes a new folder and returns its path: `path`, or `path` with -2, -3, ... appended if it exists."""
    new, number = Path(local(path)), 1
    while True:
        try:
            with errors.doing("making the folder", new):
                new.mkdir(parents=True)
            return new
        except FileExistsError:
            if not os.path.lexists(new):  # it is its parent that is no folder
                raise
            number += 1
            new = Path(f"{path}-{number}")


def _next_number(folder: Path, prefix: str, digits: int, suffix: str) -> int:
    name = re.compile(rf"{re.escape(prefix)}(\d{{{digits},}}){re.escape(suffix)}", re.ASCII | re.IGNORECASE)
    with os.scandir(folder) as entries:
        numbers = [int(match[1]) for entry in entries if (match := name.fullmatch(entry.name))]
    return max(numbers, default=-1) + 1
