"""Mutants of good files: a picture or a PictureError comes of them, and nothing else, in little time and memory."""

import pathlib
import random
import resource
import struct
import subprocess
import sys
import time
import zlib

import numpy as np
import picture_makers as make
import pytest

from sdjax import pictures

RNG = np.random.default_rng(6)
PIXELS = RNG.integers(0, 256, (24, 20, 4)).astype(np.uint8)
HERE = pathlib.Path(__file__).parent
EXTREMES = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\xff\xff", b"\0\0\0\1", b"\x80\0\0\0")


def seeds() -> list[bytes]:
    note, profile = make.exif(6), make.profile()
    rgb = PIXELS[..., :3]
    return [
        make.png(PIXELS, 8, 6, filters=None, before=make.iccp(profile) + make.chunk(b"eXIf", note)),
        make.png(PIXELS.astype(int) * 257, 16, 6, interlace=True, piece=99),
        make.png(PIXELS[..., 0] % 16, 4, 3, palette=PIXELS[:16, 0, :3], transparency=b"\0\7"),
        make.png(PIXELS[..., 0], 8, 0, transparency=b"\0\7", before=make.chunk(b"acTL", b"\0\0\0\2" + bytes(4))),
        make.saved(rgb, quality=80, exif=b"Exif\0\0" + note, icc_profile=profile),
        make.saved(rgb, quality=80, progressive=True, subsampling=2),
        make.saved(rgb, quality=80, restart_marker_blocks=1, optimize=True),
        make.saved(PIXELS, mode="CMYK", quality=80),
        make.saved(PIXELS[..., 0], quality=80, icc_profile=make.profile(b"GRAY", gamma=2.2)),
        make.saved(PIXELS, "WEBP", quality=80, exif=note, icc_profile=profile),
        make.saved(PIXELS, "WEBP", lossless=True),
        make.riff(*[(b"VP8X", bytes([0x12, 0, 0, 0, 19, 0, 0, 23, 0, 0])), (b"ANIM", bytes(6))], *[
            (b"ANMF", bytes([0, 0, 0, 0, 0, 0, 19, 0, 0, 23, 0, 0, 9, 0, 0, 0])
             + make.saved(PIXELS, "WEBP", lossless=True)[12:])
        ] * 2),
    ]  # fmt: skip


def mutant(random: random.Random, data: bytes, others: list[bytes]) -> bytes:
    out = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 5))):
        at = random.randrange(len(out) + 1)
        how = random.randrange(8)
        if how == 0:
            out[at : at + 1] = bytes([random.randrange(256)])
        elif how == 1 and out:
            out[at % len(out)] ^= 1 << random.randrange(8)
        elif how == 2:
            del out[at : at + random.choice((1, 2, 16, 200))]
        elif how == 3:
            out[at:at] = random.randbytes(random.choice((1, 2, 16, 200)))
        elif how == 4:
            out[at : at + 4] = random.choice(EXTREMES)
        elif how == 5:
            piece = random.choice(others)
            start = random.randrange(len(piece))
            out[at : at + 50] = piece[start : start + random.choice((4, 50, 500))]
        elif how == 6:
            start = random.randrange(len(out) + 1)
            out[at:at] = out[start : start + random.choice((12, 100))]
        else:
            del out[at:]
    return bytes(out)


def mended(data: bytes) -> bytes:
    """A PNG with checksums that are right again, so that what lies behind them is reached."""
    out, at = bytearray(data), 8
    while data.startswith(make.MAGIC) and at + 12 <= len(out):
        end = at + 8 + struct.unpack_from(">I", out, at)[0]
        if end + 4 > len(out):
            break
        struct.pack_into(">I", out, end, zlib.crc32(out[at + 4 : end]))
        at = end + 4
    return bytes(out)


def fuzz(seed: int, count: int) -> tuple[int, float]:
    """Returns how many of the mutants were taken, and the seconds of the slowest."""
    chance, good, taken, slowest, messages = random.Random(seed), seeds(), 0, 0.0, set()
    for i in range(count):
        data = mutant(chance, good[i % len(good)], good)
        data = mended(data) if chance.random() < 0.8 else data
        for opener in pictures.open_picture, pictures.open_mask, pictures.open_map:
            start = time.monotonic()
            try:
                result = opener(data)
                assert result[0].shape[0] * result[0].shape[1] <= pictures.MAX_PIXELS
                taken += 1
            except pictures.PictureError as error:
                messages.add(str(error))
            slowest = max(slowest, time.monotonic() - start)
    assert not any("\n" in message for message in messages)
    return taken, slowest


def run(seed: int, count: int) -> None:
    """Prints the mutants taken, the seconds of the slowest and the growth of memory in MiB."""
    for data in seeds():
        pictures.open_picture(data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    taken, slowest = fuzz(seed, count)
    print(taken, slowest, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)


def check(seed: int, count: int) -> None:
    code = f"import test_pictures_fuzz; test_pictures_fuzz.run({seed}, {count})"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=HERE)
    assert done.returncode == 0, done.stderr[-3000:]  # a crash of a decoder would be a negative one
    taken, slowest, memory = (float(word) for word in done.stdout.split())
    assert taken > count / 20  # the mutants are not all of one trivial kind
    assert slowest < 20  # seconds; 40 million pixels may be stated with few bytes, and take 2 to 5
    assert memory < 1500  # MiB; 40 million pixels with alpha are 160, and stand in memory up to six times


def test_only_picture_errors_leave():
    check(1, 600)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 8))
def test_only_picture_errors_leave_of_thousands(seed):
    check(seed, 4000)
