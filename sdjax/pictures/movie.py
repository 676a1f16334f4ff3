"""Writes animations: GIF, APNG and WebP by Pillow, MP4 by ffmpeg if it is installed."""

import io
import json
import math
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PillowImage
from PIL import PngImagePlugin

from sdjax import errors

MAX_FPS = 50  # a GIF counts hundredths of a second, and browsers slow down what is shown for only one
USER_COMMENT, EXIF_FOLDER = 0x9286, 0x8769  # where other tools look for settings in a WebP file
FFMPEG, CODEC = "ffmpeg", "libx264"


def encode(pixels: np.ndarray, kind: str, *, fps: float = 12, text: Mapping[str, str] | None = None) -> bytes:
    """Returns an animation file of frames, uint8 [n, h, w, 3]. It loops for ever (an MP4 as the player chooses).

    `kind` is "gif" (256 colours per frame), "apng" (exact), "webp" (as good as a fine JPEG) or "mp4" (H.264, by the
    ffmpeg on the PATH). `fps` is the number of frames per second, at most 50. If a format only has whole hundredths or
    thousandths of a second, frames differ in length so that the total is right. `text` (keyword to text) goes into the
    file's comment, as JSON if there are several texts; an APNG has a chunk for each.

    Raises ValueError for an unknown kind, wrong frames and a rate out of range, FileNotFoundError for MP4 without
    ffmpeg, and OSError with ffmpeg's message if it fails.
    """
    pixels = np.asarray(pixels)
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3 or 0 in pixels.shape:
        raise ValueError(f"frames are uint8 [n, h, w, 3]; got {pixels.dtype} {list(pixels.shape)}")
    if kind not in KINDS:
        raise ValueError(f"an animation is one of {', '.join(KINDS)}; got {kind!r}")
    check_fps(fps)
    text = {key: value.encode("utf-8", "replace").decode() for key, value in (text or {}).items()}
    return KINDS[kind](pixels, fps, text)


def check_fps(fps: float) -> None:
    """Raises ValueError for a rate out of range."""
    if not (math.isfinite(fps) and 0 < fps <= MAX_FPS):
        raise ValueError(f"fps is a number of frames a second above 0 and up to {MAX_FPS}; got {fps}")


def kind_of(path: str | Path) -> str:
    """Returns the kind of animation for a file's ending. Raises ValueError for an unknown ending."""
    ending = Path(path).suffix.lower()
    if ending not in SUFFIXES.values() and ending != ".png":
        raise ValueError(
            f"an animation's file ends in {', '.join(SUFFIXES.values())} or .png (APNG); got {str(path)!r}"
        )
    return "apng" if ending == ".png" else ending[1:]


def find_ffmpeg() -> str:
    """Returns the path of ffmpeg. Raises FileNotFoundError, saying what to do, without an ffmpeg that has x264."""
    path = shutil.which(FFMPEG)
    if path is None:
        raise FileNotFoundError(
            f"an MP4 is written by {FFMPEG}, which is not on the PATH; install it, or choose gif, apng or webp"
        )
    listed = subprocess.run([path, "-hide_banner", "-encoders"], stdin=subprocess.DEVNULL, capture_output=True)
    if CODEC.encode() not in listed.stdout:
        raise FileNotFoundError(
            f"{path} was built without {CODEC}, by which an MP4 is written; install one that has it, or choose gif, "
            "apng or webp"
        )
    return path


def durations(count: int, fps: float, unit: int) -> list[int]:
    """Returns how long each frame is shown, in milliseconds, all multiples of `unit` that add up to count / fps."""
    ends = [round(i * 1000 / fps / unit) for i in range(count + 1)]
    return [max(b - a, 1) * unit for a, b in zip(ends, ends[1:])]


def _gif(pixels: np.ndarray, fps: float, text: Mapping[str, str]) -> bytes:
    # Colours of its own for each frame; error diffusion hides that they are few
    frames = [PillowImage.fromarray(frame).quantize(256, dither=PillowImage.Dither.FLOYDSTEINBERG) for frame in pixels]
    out = io.BytesIO()
    comment = _comment(text).encode("utf-8")
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:], duration=durations(len(frames), fps, 10),
                   loop=0, optimize=False, comment=comment)  # fmt: skip
    return out.getvalue()


def _apng(pixels: np.ndarray, fps: float, text: Mapping[str, str]) -> bytes:
    chunks = PngImagePlugin.PngInfo()
    for keyword, value in text.items():
        chunks.add_text(keyword, value.replace("\0", "?"))
    frames = [PillowImage.fromarray(frame) for frame in pixels]
    out = io.BytesIO()
    frames[0].save(out, "PNG", save_all=True, append_images=frames[1:], duration=durations(len(frames), fps, 1),
                   loop=0, pnginfo=chunks)  # fmt: skip
    return out.getvalue()


def _webp(pixels: np.ndarray, fps: float, text: Mapping[str, str]) -> bytes:
    frames = [PillowImage.fromarray(frame) for frame in pixels]
    settings: dict[str, Any] = {}
    if text:
        exif = PillowImage.Exif()
        exif.get_ifd(EXIF_FOLDER)[USER_COMMENT] = b"UNICODE\0" + _comment(text).encode("utf-16-be")
        settings["exif"] = exif
    out = io.BytesIO()
    frames[0].save(out, "WEBP", save_all=True, append_images=frames[1:], duration=durations(len(frames), fps, 1),
                   loop=0, quality=90, method=4, **settings)  # fmt: skip
    return out.getvalue()


def _mp4(pixels: np.ndarray, fps: float, text: Mapping[str, str]) -> bytes:
    _, h, w, _ = pixels.shape
    rate = Fraction(fps).limit_denominator(1001)
    with errors.doing("making an MP4 in", tempfile.gettempdir()), tempfile.TemporaryDirectory() as folder:
        path, notes = Path(folder, "movie.mp4"), Path(folder, "notes.txt")
        escaped = re.sub(r"([=;#\\\n])", r"\\\1", _comment(text))
        notes.write_text(f";FFMETADATA1\ncomment={escaped}\n", encoding="utf-8")  # an argument has room for 128 KiB
        command = [
            find_ffmpeg(), "-loglevel", "error", "-nostdin", "-f", "rawvideo", "-pix_fmt", "rgb24",
            "-video_size", f"{w}x{h}", "-framerate", str(rate), "-i", "pipe:0",
            "-f", "ffmetadata", "-i", str(notes), "-map_metadata", "1",
            # Players want halved colours, so even sides; and colours by the standard that they assume
            "-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2,scale=out_color_matrix=bt709:out_range=tv,format=yuv420p",
            "-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709",
            "-c:v", CODEC, "-crf", "18", "-movflags", "+faststart", str(path),
        ]  # fmt: skip
        done = subprocess.run(command, input=pixels.tobytes(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        if done.returncode:
            words = done.stderr.decode(errors="replace").strip().splitlines()
            raise OSError(f"{FFMPEG} wrote no MP4: {words[-1] if words else f'it ended with {done.returncode}'}")
        return path.read_bytes()


def _comment(text: Mapping[str, str]) -> str:
    """Returns several texts as one, without zero characters."""
    whole = json.dumps(dict(text)) if len(text) > 1 else "".join(text.values())
    return whole.replace("\0", "?")


KINDS: dict[str, Callable[[np.ndarray, float, Mapping[str, str]], bytes]] = {
    "gif": _gif,
    "apng": _apng,
    "webp": _webp,
    "mp4": _mp4,
}
SUFFIXES = {"gif": ".gif", "apng": ".apng", "webp": ".webp", "mp4": ".mp4"}
