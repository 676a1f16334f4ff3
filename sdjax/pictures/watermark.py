"""The invisible watermark of both releases' scripts: a short text hidden in a picture's colours.

Named "dwtDct" by the package that the scripts call, it holds no cosine transform: each 4 x 4 block of the Haar
wavelet's averages of the U channel carries one bit, in the remainder that its largest coefficient leaves modulo 36
(9 for a 0, 27 for a 1). The text's bits are written over and over, block by block, and read by majority.

It suggests that such a script wrote the picture. It is neither a secret nor a signature. Resizing, cropping or strong
JPEG compression removes it. Even the freshly marked picture loses bits: pixels are rounded, and writing a bit may
turn the largest coefficient into the second largest. The reference reads back between half and nearly all of its own
bits in ordinary pictures.

Source: imwatermark/maxDct.py of ShieldMnt/invisible-watermark; put_watermark in scripts/txt2img.py of
CompVis/stable-diffusion and Stability-AI/stablediffusion; OpenCV's integer conversion between BGR and YUV.
"""

from typing import NamedTuple

import numpy as np
import pywt

TEXTS = {"v1": "StableDiffusionV1", "v2": "SDV2"}  # what the scripts of the two releases write
SMALLEST = 256 * 256  # pixels of the smallest picture that the reference marks
SCALE = 36.0
BLOCK = 4

# OpenCV's fixed-point factors, 2^14 to one: 0.299, 0.587, 0.114; 0.492, 0.877; and of the way back
SHIFT = 14
LUMA = (4899, 9617, 1868)  # of red, green, blue
CHROMA = (8061, 14369)  # of blue - Y in U, of red - Y in V
RED_OF_V, GREEN_OF_U, GREEN_OF_V, BLUE_OF_U = 18678, -6472, -9519, 33292


class Reading(NamedTuple):
    """The result of `decode`: the bytes, and the share of blocks (0.5 to 1) that agree with their bits.

    Every picture gives some bytes. A low share means that there is no watermark. A high share alone does not prove one:
    the blocks of a flat colour agree too. `evidence` compares with an expected text.
    """

    data: bytes
    agreement: float


def embed(pixels: np.ndarray, text: str | bytes) -> np.ndarray:
    """Returns the picture, uint8 RGB [h, w, 3], with a text (or bytes) hidden in its colours.

    Brightness changes only by rounding. Fine colour detail changes, most where it is strong. Rows and columns after the
    last multiple of 4 are not used. Raises ValueError for an empty text, a text that is too long for the picture, and
    a picture of fewer than 256 * 256 pixels, which the reference does not mark either.
    """
    bits = np.unpackbits(np.frombuffer(_as_bytes(text), np.uint8))
    check_picture(pixels)
    yuv = _rgb_to_yuv(pixels)
    h, w = (side // 4 * 4 for side in pixels.shape[:2])
    average, (horizontal, vertical, diagonal) = pywt.dwt2(yuv[1, :h, :w].astype(np.float64), "haar")
    blocks = _blocks(average)  # [n, 16]
    if len(bits) > len(blocks):
        size, room = f"{pixels.shape[1]} x {pixels.shape[0]}", len(blocks) // 8
        raise ValueError(f"a picture of {size} holds a watermark of {room} bytes at most; got {len(bits) // 8}")
    at = _carriers(blocks)
    value = np.take_along_axis(blocks, at, 1)[:, 0]
    written = (np.abs(value) // SCALE + 0.25 + 0.5 * np.resize(bits, len(blocks))) * SCALE
    np.put_along_axis(blocks, at, np.where(value < 0, -written, written)[:, None], 1)
    rows, columns = (side // BLOCK for side in average.shape)
    joined = blocks.reshape(rows, columns, BLOCK, BLOCK).swapaxes(1, 2).reshape(rows * BLOCK, columns * BLOCK)
    average[: rows * BLOCK, : columns * BLOCK] = joined
    # The reference swaps horizontal and vertical details when it transforms back, so we do the same
    changed = pywt.idwt2((average, (vertical, horizontal, diagonal)), "haar")
    yuv[1, :h, :w] = np.clip(np.trunc(changed), 0, 255)
    return _yuv_to_rgb(yuv)


def read_bits(pixels: np.ndarray, num_bits: int) -> np.ndarray:
    """Returns the share of blocks that vote for a 1, for each of `num_bits` bits, float64 [num_bits].

    Raises ValueError for a picture of fewer than 256 * 256 pixels, or with fewer blocks than bits.
    """
    votes = _votes(pixels)
    if not 1 <= num_bits <= len(votes):
        raise ValueError(f"this picture holds 1 to {len(votes)} bits of watermark; asked for {num_bits}")
    which = np.arange(len(votes)) % num_bits
    return np.bincount(which, votes, num_bits) / np.bincount(which, minlength=num_bits)


def decode(pixels: np.ndarray, num_bytes: int) -> Reading:
    """Returns the `num_bytes` bytes read from a picture, uint8 RGB [h, w, 3], and how well its blocks agree.

    Raises ValueError as `read_bits` does.
    """
    shares = read_bits(pixels, 8 * num_bytes)
    return Reading(np.packbits(to_bits(shares)).tobytes(), float(np.maximum(shares, 1 - shares).mean()))


def to_bits(shares: np.ndarray) -> np.ndarray:
    """Returns the bits for these shares of votes, bool. The reference's threshold is just below one half."""
    return shares * 255 > 127


def evidence(pixels: np.ndarray, text: str | bytes) -> float:
    """Returns how certain it is that a picture has this text: its matching blocks, in deviations above chance.

    Chance is the expected match with the same number of votes for 1 in random order. So a flat colour, which votes 0
    everywhere, scores 0. 120 random pictures of natural spectrum scored -2 to 3.2 without the text, 15 to 53 with it.
    Another text of plain letters may score 5, because letters share bits. The text with the highest score is the one.

    Raises ValueError for an empty text, and as `read_bits` does.
    """
    votes = _votes(pixels)
    wanted = np.resize(np.unpackbits(np.frombuffer(_as_bytes(text), np.uint8)), len(votes)).astype(bool)
    ones = votes.mean()
    expected = np.where(wanted, ones, 1 - ones).sum()
    # The variance of matches under a random order of the votes: that of the hypergeometric distribution, times four
    share, n = wanted.mean(), len(votes)
    variance = 4 * n * share * (1 - share) * ones * (1 - ones) * n / max(n - 1, 1)
    return float((np.sum(votes == wanted) - expected) / variance**0.5) if variance else 0.0


def check_picture(pixels: np.ndarray) -> None:
    """Raises ValueError unless this is a picture, uint8 [h, w, 3], large enough for a watermark."""
    pixels = np.asarray(pixels)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] != 3:
        raise ValueError(f"a picture is uint8 [h, w, 3]; got {pixels.dtype} {list(pixels.shape)}")
    check_size(pixels.shape[0], pixels.shape[1])


def check_size(height: int, width: int) -> None:
    """Raises ValueError for a size that has no room for a watermark."""
    if height * width < SMALLEST or min(height, width) < 2 * BLOCK:
        raise ValueError(
            f"a watermark needs a picture of at least 256 x 256 pixels, or as many in another shape; got {width} x "
            f"{height}. Make it larger, or leave the watermark out"
        )


def _as_bytes(text: str | bytes) -> bytes:
    data = text.encode("utf-8") if isinstance(text, str) else bytes(text)
    if not data:
        raise ValueError("a watermark is a text of at least one character; got an empty one")
    return data


def _votes(pixels: np.ndarray) -> np.ndarray:
    """Returns each block's bit, bool [n]."""
    check_picture(pixels)
    h, w = (side // 4 * 4 for side in pixels.shape[:2])
    average, _ = pywt.dwt2(_rgb_to_yuv(pixels)[1, :h, :w].astype(np.float64), "haar")
    blocks = _blocks(average)
    return np.abs(np.take_along_axis(blocks, _carriers(blocks), 1)[:, 0]) % SCALE > SCALE / 2


def _blocks(average: np.ndarray) -> np.ndarray:
    """Returns a copy of the 4 x 4 blocks of a map, row by row, [n, 16]. Incomplete blocks are left out."""
    rows, columns = (side // BLOCK for side in average.shape)
    cut = average[: rows * BLOCK, : columns * BLOCK].reshape(rows, BLOCK, columns, BLOCK)
    return cut.swapaxes(1, 2).reshape(rows * columns, BLOCK * BLOCK).copy()


def _carriers(blocks: np.ndarray) -> np.ndarray:
    """Returns the index of the coefficient that holds each block's bit, [n, 1]: the largest except the first."""
    return np.abs(blocks[:, 1:]).argmax(1)[:, None] + 1


def _rgb_to_yuv(pixels: np.ndarray) -> np.ndarray:
    """Returns Y, U and V, uint8 [3, h, w], as OpenCV computes them."""
    red, green, blue = np.moveaxis(pixels.astype(np.int32), -1, 0)
    y = _scaled(LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue)
    u, v = (_scaled(factor * (of - y)) + 128 for factor, of in zip(CHROMA, (blue, red), strict=True))
    return np.clip([y, u, v], 0, 255).astype(np.uint8)


def _yuv_to_rgb(yuv: np.ndarray) -> np.ndarray:
    """Returns pixels, uint8 [h, w, 3], of Y, U and V as OpenCV computes them."""
    y, u, v = yuv.astype(np.int32) - np.array([0, 128, 128]).reshape(3, 1, 1)
    red = y + _scaled(RED_OF_V * v)
    green = y + _scaled(GREEN_OF_U * u + GREEN_OF_V * v)
    blue = y + _scaled(BLUE_OF_U * u)
    return np.clip(np.stack([red, green, blue], -1), 0, 255).astype(np.uint8)


def _scaled(value: np.ndarray) -> np.ndarray:
    """Returns value / 2^14, halves rounded up."""
    return (value + (1 << (SHIFT - 1))) >> SHIFT
