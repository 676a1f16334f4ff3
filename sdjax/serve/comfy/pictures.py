"""Pictures that a graph reads, with their opacity, and their names."""

import struct
import zlib

import numpy as np
from jaxtyping import UInt8

from sdjax.pictures.image import encode_png
from sdjax.pictures.opening import open_opacity, open_picture


def with_opacity(data: bytes) -> UInt8[np.ndarray, "h w 4"]:
    """Returns the picture of a file with its opacity as the fourth channel.

    Colours under partial opacity are those of the file, to a rounding; where nothing is seen they are black. Raises
    PictureError, a ValueError, for what is no picture.
    """
    pixels = open_picture(data, background=(0, 0, 0)).pixels
    opacity = np.asarray(open_opacity(data))
    if (opacity < 255).any():  # the picture was laid on black: p = colour * opacity
        share = opacity.astype(np.float32)[..., None] / 255
        pixels = np.clip(np.where(share > 0, pixels / np.where(share > 0, share, 1), 0), 0, 255).astype(np.uint8)
    return np.concatenate([pixels, opacity[..., None].astype(np.uint8)], axis=-1)


def plain_name(name: str) -> str:
    """Returns a name without folders and special characters. Names never become paths."""
    plain = name.replace("\\", "/").rpartition("/")[2]
    made = "".join(one if one.isprintable() and one not in '<>:"|?*' else "_" for one in plain).strip(" .")[:80]
    return made or ("picture.png" if name else "")


def in_folder(folder: str, name: str) -> str:
    """Returns the name of a picture with its folder, as a graph names it."""
    return f"{folder}/{name}" if folder else name


def placed(value: str) -> tuple[str, str]:
    """Returns the name and the place of a picture that a graph names: "a.png", "a.png [output]"."""
    for place in "input", "output", "temp":
        if value.endswith(f" [{place}]"):
            return value[: -len(place) - 3], place
    return value, "input"


def rgba_png(pixels: np.ndarray) -> bytes:
    """Returns a picture with its opacity, uint8 [h, w, 4], as a PNG file."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width = pixels.shape[:2]
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1)
    head = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows.tobytes(), 6))
        + chunk(b"IEND", b"")
    )


def channel_of(content: bytes, channel: str) -> bytes:
    """Returns the colours ("rgb") or the opacity ("a") of a picture as a PNG file."""
    pixels = with_opacity(content)
    if channel == "rgb":
        return encode_png(pixels[..., :3])
    return rgba_png(np.concatenate([np.zeros_like(pixels[..., :3]), pixels[..., 3:]], axis=-1))
