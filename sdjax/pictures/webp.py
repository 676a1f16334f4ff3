"""Reads WebP files (RFC 9649): checks the RIFF container, and takes the first frame of an animation."""

import io
import struct

import numpy as np
from PIL import Image as PillowImage
from PIL import features

from sdjax.pictures.samples import (
    MAX_CHUNKS,
    MAX_PROFILE,
    PictureError,
    Samples,
    check_side,
    orientation,
    trailing,
)


def read(data: bytes) -> Samples:
    if not features.check("webp"):
        raise PictureError("this installation of Pillow reads no WebP")
    end = 8 + struct.unpack_from("<I", data, 4)[0]
    if end > len(data):
        raise PictureError("the WebP is truncated")
    chunks: dict[bytes, bytes] = {}
    frames, at = 0, 12
    while at + 8 <= end:
        name, length = struct.unpack_from("<4sI", data, at)
        if at + 8 + length > end:
            raise PictureError("the WebP is truncated")
        if name == b"ANMF":
            frames += 1
            if frames > MAX_CHUNKS:
                raise PictureError(f"the WebP has more than {MAX_CHUNKS} frames")
        if name not in chunks:
            chunks[name] = data[at + 8 : at + 8 + length]
        at += 8 + length + length % 2
    if b"VP8X" not in chunks:
        kind = data[12:16]
        _check_webp(kind, chunks.get(kind, b""), None)
        kept = [kind]
    else:
        header = chunks[b"VP8X"]
        if len(header) != 10 or data[12:16] != b"VP8X":
            raise PictureError("the WebP is damaged: its header is not of 10 bytes")
        canvas = _three(header, 4) + 1, _three(header, 7) + 1
        check_side(*canvas)
        chunks[b"VP8X"] = bytes([header[0] & 0x12]) + header[1:]  # of its flags, transparency and animation
        if header[0] & 0x02:
            kept = [b"VP8X", b"ANIM", b"ANMF"]
            _check_animation(chunks, canvas)
        else:
            kind = b"VP8L" if b"VP8L" in chunks else b"VP8 "
            kept = [b"VP8X", *([b"ALPH"] if b"ALPH" in chunks and kind == b"VP8 " else []), kind]
            _check_webp(kind, chunks.get(kind, b""), canvas)
    body = b"".join(
        struct.pack("<4sI", name, len(chunks[name])) + chunks[name] + b"\0" * (len(chunks[name]) % 2) for name in kept
    )
    clean = b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body
    with PillowImage.open(io.BytesIO(clean), formats=("WEBP",)) as picture:
        check_side(*picture.size)
        samples = np.asarray(picture)
    notices = trailing(data, end)
    if frames > 1:
        notices.append(f"animation of {frames} frames: the first one taken")
    alpha = samples[..., 3] if samples.shape[-1] == 4 else None
    profile = chunks.get(b"ICCP")
    if profile is not None and len(profile) > MAX_PROFILE:
        profile = None
        notices.append("damaged colour profile ignored")
    return Samples(samples[..., :3], alpha, profile, orientation(chunks.get(b"EXIF", b"")), tuple(notices))


def _three(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 3], "little")


def _check_animation(chunks: dict[bytes, bytes], canvas: tuple[int, int]) -> None:
    """Raises PictureError unless the first frame is inside the canvas and has the size that it states."""
    frame = chunks.get(b"ANMF", b"")
    if b"ANIM" not in chunks or len(frame) < 24:
        raise PictureError("the WebP is truncated: it holds no frame")
    left, top = 2 * _three(frame, 0), 2 * _three(frame, 3)
    size = _three(frame, 6) + 1, _three(frame, 9) + 1
    if left + size[0] > canvas[0] or top + size[1] > canvas[1]:
        raise PictureError("the WebP is damaged: its frame is outside the picture")
    at = 16
    while at + 8 <= len(frame):
        name, length = struct.unpack_from("<4sI", frame, at)
        if name in (b"VP8 ", b"VP8L"):
            return _check_webp(name, frame[at + 8 : at + 8 + length], size)
        at += 8 + length + length % 2
    raise PictureError("the WebP is truncated: it holds no frame")


def _check_webp(kind: bytes, stream: bytes, expected: tuple[int, int] | None) -> None:
    """Raises PictureError unless a VP8 or VP8L stream has the expected size."""
    if kind == b"VP8 " and len(stream) >= 10 and stream[3:6] == b"\x9d\x01\x2a":
        size = tuple(side & 0x3FFF for side in struct.unpack_from("<HH", stream, 6))
    elif kind == b"VP8L" and len(stream) >= 5 and stream[0] == 0x2F:
        bits = struct.unpack_from("<I", stream, 1)[0]
        size = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        raise PictureError("the WebP is damaged: it holds no pixels")
    check_side(*size)
    if expected is not None and size != expected:
        raise PictureError(f"the WebP is damaged: it states {expected} pixels, and holds {size}")
