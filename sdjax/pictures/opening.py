"""Opens pictures, masks and maps from a file, bytes, a Pillow image or an array. All inputs go through here."""

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image as PillowImage

from sdjax.errors import doing
from sdjax.pictures import colour, formats
from sdjax.pictures.samples import MAX_BYTES, PictureError, Samples, check_side, orientation
from sdjax.storage.addresses import local

PictureSource = str | os.PathLike[str] | bytes | bytearray | memoryview | PillowImage.Image | np.ndarray


class Picture(NamedTuple):
    """`pixels`: uint8 [h, w, 3] in sRGB. `notices`: one phrase for each change made to the file's picture."""

    pixels: np.ndarray
    notices: tuple[str, ...]


class Mask(NamedTuple):
    """`pixels` uint8 [h, w], 255 where the picture is replaced and 0 where it stays."""

    pixels: np.ndarray
    notices: tuple[str, ...]


class Map(NamedTuple):
    """`values` float32 [h, w], all finite."""

    values: np.ndarray
    notices: tuple[str, ...]


def open_picture(source: PictureSource, *, background: Sequence[int] = (255, 255, 255)) -> Picture:
    """Returns the picture of a PNG, JPEG or WebP file (a path or its bytes), a Pillow image or a uint8 array.

    Arrays are [h, w], [h, w, 1], [h, w, 3] or [h, w, 4] (the last channel is alpha). The picture is turned upright by
    EXIF. Colours are converted to sRGB by the file's profile. Transparency is laid on `background`, mixing stored
    values as browsers do. 16 bits are rounded: v / 257. Animations and multi-picture files give the first picture. Each
    such change is a notice.

    Raises PictureError, saying what is wrong, for any other format, more than 40 million pixels or 256 MiB, and damaged
    or truncated files. Raises OSError if a file cannot be read.
    """
    background = tuple(int(level) for level in background)
    if len(background) != 3 or not all(0 <= level <= 255 for level in background):
        raise PictureError(f"a background is three levels from 0 to 255; got {background}")
    samples, name = _samples(source)
    with _named(name):
        if samples.colour.dtype == np.float32:
            raise PictureError("a picture has 8 or 16 bits; this one has floating point values of no stated range")
        rgb, notices = colour.to_rgb(samples)
        if samples.alpha is not None and samples.alpha.min() < np.iinfo(samples.alpha.dtype).max:
            notices.append(f"transparency laid on the colour {background}")
            rgb = colour.lay_on(rgb, samples.alpha, background)
        if samples.colour.dtype == np.uint16:
            notices.append("16 bits rounded to 8")
        pixels = np.broadcast_to(colour.to_eight_bits(rgb), (*rgb.shape[:2], 3))
        return Picture(_turn(pixels, samples, notices), (*samples.notices, *notices))


def open_mask(source: PictureSource, *, size: tuple[int, int] | None = None) -> Mask:
    """Returns a mask, 255 where the picture is replaced, from anything that open_picture takes, or booleans [h, w].

    Colours become grey (luma). There are three cases with transparency. If all is one colour, its opacity is the mask
    (opaque is replaced). A grey picture is laid on black (transparent stays). A colour picture is replaced where it is
    transparent. Profiles are not applied, because a mask is numbers. A notice names the case.

    Raises PictureError as open_picture does, and if the mask does not have the given `size`, (height, width).
    """
    samples, name = _samples(source)
    with _named(name):
        if samples.colour.dtype == np.float32:
            raise PictureError("a mask has 8 or 16 bits; this one has floating point values of no stated range")
        rgb, notices = colour.to_rgb(samples._replace(profile=None))
        rgb = colour.to_eight_bits(rgb)
        alpha = None if samples.alpha is None else colour.to_eight_bits(samples.alpha)
        if alpha is not None and alpha.min() < 255:
            if colour.is_one_colour(rgb, alpha):
                pixels = alpha
                notices.append("mask taken from the opacity: opaque is replaced")
            elif colour.is_grey(rgb, alpha):
                pixels = np.rint(colour.grey(colour.lay_on(rgb, alpha, (0, 0, 0)))).astype(np.uint8)
                notices.append("mask's transparent parts taken as black: they stay")
            else:
                pixels = 255 - alpha
                notices.append("mask taken from the holes of a picture: transparent is replaced")
        else:
            if not colour.is_grey(rgb):
                notices.append("mask in colour: taken by its brightness")
            pixels = np.rint(colour.grey(rgb)).astype(np.uint8)
        pixels = _turn(pixels, samples, notices)
        if size is not None and pixels.shape != tuple(size):
            raise PictureError(
                f"a mask is of the picture's size, {size[1]} x {size[0]}; this one is "
                f"{pixels.shape[1]} x {pixels.shape[0]}"
            )
        return Mask(pixels, (*samples.notices, *notices))


def open_opacity(source: PictureSource) -> np.ndarray:
    """Returns how opaque a picture is, uint8 [h, w]: 255 where it hides what is behind it, everywhere without alpha.

    It is turned upright as the picture is. Raises PictureError as `open_picture` does.
    """
    samples, name = _samples(source)
    with _named(name):
        if samples.alpha is None:
            return _turn(np.full(samples.colour.shape[:2], 255, np.uint8), samples, [])
        return _turn(colour.to_eight_bits(samples.alpha), samples, [])


def open_map(source: PictureSource) -> Map:
    """Returns a map (of depth, for example): 8-bit grey as v / 255, 16-bit as v / 65535, floating point unchanged.

    It accepts the inputs of open_picture, and float, uint16 and other real arrays [h, w]. Colours become grey (luma).
    Transparency and profiles are ignored. Raises PictureError as open_picture does, and for values that are not finite.
    """
    samples, name = _samples(source, real=True)
    with _named(name):
        notices: list[str] = []
        if samples.colour.dtype == np.float32:
            if samples.colour.shape[-1] != 1:
                raise PictureError(f"a map has one channel; this one has {samples.colour.shape[-1]}")
            values = samples.colour[..., 0]
            if not np.isfinite(values).all():
                raise PictureError("a map's values are finite numbers; some of these are not")
        else:
            rgb, notices = colour.to_rgb(samples._replace(profile=None))
            if not colour.is_grey(rgb):
                notices.append("map in colour: taken by its brightness")
            values = colour.grey(rgb)
            values /= np.float32(np.iinfo(rgb.dtype).max)
        if samples.alpha is not None and samples.alpha.min() < np.iinfo(samples.alpha.dtype).max:
            notices.append("transparency of a map ignored")
        return Map(_turn(values, samples, notices), (*samples.notices, *notices))


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Puts a name before a PictureError's sentence, and turns every other exception into a PictureError."""
    try:
        yield
    except PictureError as error:
        raise PictureError(f"{name}: {error}") from error
    except Exception as error:  # Pillow raises many kinds of errors, even MemoryError
        raise PictureError(f"{name}: the picture is damaged ({error or type(error).__name__})") from error


def _turn(array: np.ndarray, samples: Samples, notices: list[str]) -> np.ndarray:
    if samples.orientation != 1:
        notices.append(f"{colour.TURNS[samples.orientation]}, as the file's EXIF says")
    return colour.upright(array, samples.orientation)


def _samples(source: PictureSource, *, real: bool = False) -> tuple[Samples, str]:
    """Returns the samples, and a name for messages."""
    if isinstance(source, PillowImage.Image):
        with _named("the Pillow image"):
            return _of_pillow(source), "the Pillow image"
    if isinstance(source, (bytes, bytearray, memoryview)):
        with _named("the picture"):
            if memoryview(source).nbytes > MAX_BYTES:
                raise PictureError(f"the file has more than {MAX_BYTES} bytes")
            return formats.read(bytes(source)), "the picture"
    if isinstance(source, (str, os.PathLike)):
        name = _shown(source)
        data = read_file(source)
        with _named(name):
            return formats.read(data), name
    if hasattr(source, "__array__"):
        with _named("the array"):
            return _of_array(np.asarray(source), real), "the array"
    raise PictureError(f"a picture is a path, bytes, a Pillow image or an array; got {type(source).__name__}")


def read_file(path: str | os.PathLike) -> bytes:
    """Returns a file's bytes. Raises OSError; PictureError if it is too long, or a device, pipe or folder."""
    local(path)
    with doing("reading the picture", path):
        return _content(path, _shown(path))


def _shown(path: str | os.PathLike) -> str:
    """Returns the path as a printable text."""
    name = os.fsdecode(path)
    return name if name.isprintable() else ascii(name)


def _content(path: str | os.PathLike, name: str) -> bytes:
    try:  # without waiting for a pipe's other end
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except ValueError as error:  # a zero byte in the name
        raise PictureError(f"{name}: no such file can be ({error})") from error
    try:
        about = os.fstat(handle)
        if not stat.S_ISREG(about.st_mode):
            raise PictureError(f"{name}: not a file, but a {'folder' if stat.S_ISDIR(about.st_mode) else 'device'}")
        if about.st_size > MAX_BYTES:
            raise PictureError(f"{name}: the file has {about.st_size} bytes, and at most {MAX_BYTES} are read")
    except BaseException:
        os.close(handle)
        raise
    with open(handle, "rb") as file:
        return file.read(MAX_BYTES + 1)


def _of_array(array: np.ndarray, real: bool) -> Samples:
    if array.dtype == bool and array.ndim == 2:
        array = array.astype(np.uint8) * 255
    if real and array.dtype != np.uint8 and array.dtype.kind in "uif":
        array = array if array.dtype == np.uint16 else array.astype(np.float32)
    elif array.dtype != np.uint8:
        raise PictureError(f"an array of pixels is uint8, from 0 to 255; got {array.dtype}")
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[-1] not in (1, 3, 4):
        raise PictureError(f"an array of one picture is [h, w], [h, w, 1], [h, w, 3] or [h, w, 4]; got {array.shape}")
    check_side(array.shape[1], array.shape[0])
    return Samples(array[..., :3], array[..., 3] if array.shape[-1] == 4 else None)


def _of_pillow(image: PillowImage.Image) -> Samples:
    """Returns the samples of the current frame of a Pillow image."""
    check_side(*image.size)
    image.load()
    info = image.info
    alpha = None
    if image.mode == "P" or image.mode in ("PA", "RGBa", "La") or (image.mode == "RGB" and "transparency" in info):
        image = image.convert("RGBA")
    elif image.mode in ("L", "1") and "transparency" in info:
        image = image.convert("LA")
    elif image.mode not in ("1", "L", "LA", "RGB", "RGBA", "CMYK", "I", "F") and not image.mode.startswith("I;16"):
        image = image.convert("RGB")
    samples = np.asarray(image)
    if image.mode == "1":
        samples = samples.astype(np.uint8) * 255
    elif image.mode == "F":
        samples = samples.astype(np.float32)
    elif image.mode.startswith("I"):
        if samples.min() < 0 or samples.max() > 65535:
            raise PictureError("whole numbers outside of 0 to 65535 are not grey of 16 bits")
        samples = samples.astype(np.uint16)
    elif image.mode in ("LA", "RGBA"):
        samples, alpha = samples[..., :-1], samples[..., -1]
    samples = samples.reshape(*samples.shape[:2], -1)
    exif, profile = info.get("exif"), info.get("icc_profile")
    return Samples(
        samples, alpha, profile if isinstance(profile, bytes) and profile else None,
        orientation(exif) if isinstance(exif, bytes) else 1,
    )  # fmt: skip
