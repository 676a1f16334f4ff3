"""Reads JPEG files (ITU-T T.81). Checks that no segment or scan is missing or truncated."""

import itertools
import re
import struct
from typing import NamedTuple

import numpy as np
from PIL import Image as PillowImage

from sdjax.pictures.samples import (
    MAX_PROFILE,
    PictureError,
    Samples,
    check_side,
    orientation,
    trailing,
)

MAX_SCANS = 50  # encoders write about ten
MAX_SEGMENTS = 10_000  # a long profile takes 255

_MARKER = re.compile(rb"\xff[\x01-\xfe]")
_SCAN_END = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # neither a stuffed 0xFF nor a restart
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
_PADDING = bytes(b % 251 for b in np.random.RandomState(7).bytes(64))  # no 0xFF, so no marker


class _Frame(NamedTuple):
    """A JPEG's SOF: component number -> (horizontal, vertical) sampling."""

    width: int
    height: int
    progressive: bool
    sampling: dict[int, tuple[int, int]]


class _Jpeg:
    """A JPEG's structure: the parts to decode, the ends of entropy-coded stretches, and notices."""

    def __init__(self, data: bytes):
        self.data, self.view = data, memoryview(data)
        self.parts: list[memoryview | bytes | None] = [data[:2]]  # None: the end of an entropy-coded stretch
        self.frame: _Frame | None = None
        self.interval = 0  # units between restarts, 0 for none
        self.scans = 0
        self.bits_left: dict[int, np.ndarray] = {}  # component -> for each coefficient the bits to come, -1 for all
        self.exif = b""
        self.profile: dict[int, bytes] = {}
        self.profile_count = 0
        self.pictures = False  # several, as in MPO
        self.end = self._walk()

    def _walk(self) -> int:
        at = 2
        for _ in range(MAX_SEGMENTS):
            match = _MARKER.search(self.data, at)
            if match is None:
                break
            at, marker = match.end(), self.data[match.start() + 1]
            if marker == 0xD9:
                return at
            if 0xD0 <= marker <= 0xD7:
                continue
            if at + 2 > len(self.data):
                break
            length = struct.unpack_from(">H", self.data, at)[0]
            if at + length > len(self.data):
                break
            if length < 2:
                raise PictureError("the JPEG is damaged: a segment has no length")
            content = self.data[at + 2 : at + length]
            if self._segment(marker, content):
                self.parts.append(self.view[match.start() : at + length])
            at += length
            if marker == 0xDA:
                at = self._scan(content, at)
        else:
            raise PictureError(f"the JPEG has more than {MAX_SEGMENTS} segments")
        raise PictureError("the JPEG is truncated")

    def _segment(self, marker: int, content: bytes) -> bool:
        """Returns whether a segment is needed to decode the pixels. Stores its information."""
        if marker in (0xC0, 0xC1, 0xC2):
            self._start(marker, content)
        elif marker == 0xDD:
            (self.interval,) = struct.unpack(">H", content)
        elif marker == 0xE1 and content.startswith(b"Exif\0\0") and not self.exif:
            self.exif = content
        elif marker == 0xE2 and content.startswith(b"ICC_PROFILE\0") and len(content) > 14:
            self.profile[content[12]], self.profile_count = content[14:], content[13]
        elif marker == 0xE2 and content.startswith(b"MPF\0"):
            self.pictures = True
        elif marker not in (0xC4, 0xDA, 0xDB, 0xFE, *range(0xE0, 0xFE)):
            kinds = "lossless" if marker == 0xC3 else "arithmetic" if 0xC9 <= marker <= 0xCC else f"0x{marker:02X}"
            raise PictureError(f"the JPEG is of a kind that is not read ({kinds})")
        return (
            marker in (0xC0, 0xC1, 0xC2, 0xC4, 0xDA, 0xDB, 0xDD)
            or (marker == 0xE0 and content.startswith(b"JFIF\0"))
            or (marker == 0xEE and content.startswith(b"Adobe"))
        )

    def _start(self, marker: int, content: bytes) -> None:
        bits, height, width, count = struct.unpack_from(">BHHB", content)
        if self.frame is not None or bits != 8 or count not in (1, 3, 4) or len(content) != 6 + 3 * count:
            raise PictureError(f"the JPEG is damaged or of a rare kind ({bits} bits, {count} channels)")
        check_side(width, height)
        table = np.frombuffer(content, np.uint8, offset=6).reshape(count, 3).tolist()
        sampling = {number: (factors >> 4, factors & 15) for number, factors, _ in table}
        if len(sampling) != count or not all(1 <= f <= 4 for pair in sampling.values() for f in pair):
            raise PictureError("the JPEG is damaged: its channels make no sense")
        self.frame = _Frame(width, height, marker == 0xC2, sampling)
        self.bits_left = {number: np.full(64, -1) for number in sampling}

    def _scan(self, header: bytes, start: int) -> int:
        """Returns the end of a scan. Its stretches between restarts become parts; their number is checked."""
        frame = self.frame
        count = header[0] if header else 0
        if frame is None or not 1 <= count <= 4 or len(header) != 4 + 2 * count:
            raise PictureError("the JPEG is damaged: a scan makes no sense")
        self.scans += 1
        if self.scans > MAX_SCANS:
            raise PictureError(f"the JPEG has more than {MAX_SCANS} scans")
        first, last, bits = header[-3:] if frame.progressive else (0, 63, 0)
        for number in header[1 : 1 + 2 * count : 2]:
            if number not in self.bits_left or not first <= last <= 63:
                raise PictureError("the JPEG is damaged: a scan makes no sense")
            self.bits_left[number][first : last + 1] = bits & 15
        match = _SCAN_END.search(self.data, start)
        if match is None:
            raise PictureError("the JPEG is truncated")
        end = match.start()
        stretches = _ceil(self._units(header[1 : 1 + 2 * count : 2]), self.interval) if self.interval else 1
        found = itertools.islice(_RESTART.finditer(self.data, start, end), stretches + 1)
        restarts = [restart.start() for restart in found]
        if len(restarts) == stretches and restarts[-1] + 2 == end:  # one more at the very end does no harm
            end = restarts.pop()
        if len(restarts) >= stretches or any(self.data[at + 1] & 7 != i % 8 for i, at in enumerate(restarts)):
            raise PictureError("the JPEG is damaged: its restarts are out of order")
        if len(restarts) + 1 < stretches:
            raise PictureError(f"the JPEG is truncated: {len(restarts) + 1} of {stretches} stretches are there")
        for at in restarts:
            self._stretch(start, at)
            self.parts.append(self.view[at : at + 2])
            start = at + 2
        self._stretch(start, end)
        return match.start()

    def _stretch(self, start: int, end: int) -> None:
        if end > start and self.data[end - 1] == 0xFF:  # filling before a marker
            end = start + len(self.data[start:end].rstrip(b"\xff"))
        self.parts += [self.view[start:end], None]

    def _units(self, numbers: bytes) -> int:
        """Returns a scan's number of MCUs (T.81, A.2)."""
        frame = self.frame
        assert frame is not None  # a scan before it was refused
        across = max(h for h, _ in frame.sampling.values())
        down = max(v for _, v in frame.sampling.values())
        if len(numbers) > 1:
            return _ceil(frame.width, 8 * across) * _ceil(frame.height, 8 * down)
        h, v = frame.sampling[numbers[0]]
        return _ceil(_ceil(frame.width * h, across), 8) * _ceil(_ceil(frame.height * v, down), 8)

    def stream(self, padding: bytes) -> bytes:
        """Returns a JPEG of the needed parts alone, with those bytes after every entropy-coded stretch."""
        return b"".join([padding if part is None else part for part in self.parts] + [b"\xff\xd9"])


def read(data: bytes) -> Samples:
    jpeg = _Jpeg(data)
    if jpeg.frame is None or not jpeg.scans:
        raise PictureError("the JPEG is truncated: it holds no pixels")
    if any(left.any() for left in jpeg.bits_left.values()):
        raise PictureError("the JPEG is truncated: some of its scans are missing")
    size = jpeg.frame.width, jpeg.frame.height
    mode, raw = {1: ("L", "L"), 3: ("RGB", "RGB"), 4: ("CMYK", "CMYK;I")}[len(jpeg.frame.sampling)]

    def decode(padding: bytes) -> PillowImage.Image:
        return PillowImage.frombytes(mode, size, jpeg.stream(padding), "jpeg", raw, "")

    picture = decode(b"")
    # If a stretch is too short, libjpeg paints the rest grey without an error. A complete stretch ignores bytes after
    # it, so different bytes there must not change the picture.
    if not _same(picture, decode(_PADDING)):
        raise PictureError("the JPEG is truncated or damaged: a part of its pixels is missing")
    colour = np.asarray(picture).reshape(jpeg.frame.height, jpeg.frame.width, -1)
    notices = trailing(data, jpeg.end)
    if jpeg.pictures:
        notices.append("file of several pictures: the first one taken")
    profile = None
    if jpeg.profile:
        if sorted(jpeg.profile) == list(range(1, jpeg.profile_count + 1)):
            profile = b"".join(jpeg.profile[i] for i in sorted(jpeg.profile))
        if profile is None or len(profile) > MAX_PROFILE:
            profile = None
            notices.append("damaged colour profile ignored")
    return Samples(colour, None, profile, orientation(jpeg.exif), tuple(notices))


def _same(a: PillowImage.Image, b: PillowImage.Image) -> bool:
    width, height = a.size
    rows = max(1, 2**20 // width)
    boxes = ((0, top, width, min(top + rows, height)) for top in range(0, height, rows))
    return all(a.crop(box).tobytes() == b.crop(box).tobytes() for box in boxes)


def _ceil(a: int, b: int) -> int:
    return -(-a // b)
