"""Recognises the background and the subjects of a picture from its pixels and the sprites.

The background is the colour nearest to the median of the picture's rim. Let d = picture - b be the difference from the
background b. A sprite drawn at a place changes the background by r = colour - opacity b, and explains
|d|^2 - |d - r|^2 = 2 <d, r> - |r|^2 of the squared difference. The subject is the sprite, size and place that explain
most. Nothing is learned, and all subjects are treated alike.
"""

import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from sdjax.train.builtin import subjects
from sdjax.train.builtin.emoji import SIZES, Sprites

STRIDE = 2  # picture pixels per pixel of the compared maps; as accurate as 1 and 16 times faster
RIM = 2  # pixels of the border whose median is the background


class SceneReading(NamedTuple):
    """Indices into COLOURS and `subjects.names()`; `boxes` are (size, left, top), and `left_over` is the share of the
    difference from the background that the subjects do not explain.
    """

    colour: int
    subjects: tuple[int, ...]
    boxes: tuple[tuple[int, int, int], ...]
    left_over: float


class Reader:
    """Reads pictures of the sprites' side."""

    def __init__(self, sprites: Sprites, sizes: tuple[int, ...] = SIZES):
        self.side = sprites.side // STRIDE
        self.sizes = sizes
        self.count = len(sprites.pixels[0])
        shape = (len(sizes), self.count, 4, self.side, self.side)
        maps: np.ndarray = np.zeros(
            shape, np.float32
        )  # colour times opacity, and opacity, in the corner of an empty map
        for stack, size in zip(maps, sizes):
            small = _shrink(sprites.pixels[SIZES.index(size)].astype(np.float32))
            s = small.shape[1]
            stack[:, :3, :s, :s] = small[..., :3].transpose(0, 3, 1, 2)
            stack[:, 3, :s, :s] = 255 - small[..., 3]
        maps = maps.reshape(-1, *shape[2:]) / 255
        self.maps = maps
        self.spectra = np.conj(np.fft.rfft2(maps)).astype(np.complex64)  # [sizes * subjects, 4, side, side / 2 + 1]
        inner = functools.partial(np.einsum, optimize=True)
        self.colour_colour = inner("nchw,nchw->n", maps[:, :3], maps[:, :3])
        self.colour_opacity = inner("nchw,nhw->nc", maps[:, :3], maps[:, 3])
        self.opacity_opacity = inner("nhw,nhw->n", maps[:, 3], maps[:, 3])

    def read(self, picture: UInt8[np.ndarray, "h w 3"], count: int = 1) -> SceneReading:
        """Returns the background and the `count` subjects that explain the picture best, the best first.

        Raises ValueError for a picture of another size.
        """
        if picture.shape != (self.side * STRIDE, self.side * STRIDE, 3):
            raise ValueError(f"this reader takes pictures of side {self.side * STRIDE}, got {picture.shape}")
        b = background(picture)
        colour = int(np.argmin(((np.array(list(subjects.COLOURS.values())) - b) ** 2).sum(1)))
        b = (b / 255).astype(np.float32)
        d = (_shrink(picture[None].astype(np.float32))[0] / 255 - b).transpose(2, 0, 1)
        start = float((d**2).sum())
        # |colour - opacity b|^2 of every sprite
        power = self.colour_colour - 2 * self.colour_opacity @ b + self.opacity_opacity * (b**2).sum()
        found: list[int] = []
        boxes = []
        for _ in range(count):
            gain = 2 * self._products(d, b) - power[:, None, None]
            for subject in found:
                gain.reshape(len(self.sizes), self.count, -1)[:, subject] = -np.inf
            k, top, left = np.unravel_index(np.argmax(gain), gain.shape)
            drawn = self.maps[k, :3] - self.maps[k, 3] * b[:, None, None]
            d = d - np.roll(drawn, (top, left), axis=(1, 2))
            found.append(int(k % self.count))
            boxes.append((self.sizes[k // self.count], int(left) * STRIDE, int(top) * STRIDE))
        return SceneReading(colour, tuple(found), tuple(boxes), float((d**2).sum()) / max(start, 1e-9))

    def _products(self, d: Float[np.ndarray, "3 h w"], b: Float[np.ndarray, "3"]) -> Float[np.ndarray, "n h w"]:
        """Returns <d, r> for every sprite at every place where it lies inside the picture, -inf elsewhere."""
        spectrum = np.fft.rfft2(d).astype(np.complex64)
        weights = np.concatenate([spectrum, -np.tensordot(b, spectrum, 1)[None]])  # of the colours and of the opacity
        products = np.fft.irfft2(np.einsum("nchw,chw->nhw", self.spectra, weights), s=(self.side, self.side))
        products = products.reshape(len(self.sizes), self.count, self.side, self.side)
        for product, size in zip(products, self.sizes):
            room = self.side - -(-size * self.side // 64) + 1
            product[:, room:] = -np.inf
            product[:, :, room:] = -np.inf
        return products.reshape(-1, self.side, self.side)


def background(picture: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "3"]:
    """Returns the median colour of the picture's rim, 0 to 255."""
    inside = np.zeros(picture.shape[:2], bool)
    inside[RIM:-RIM, RIM:-RIM] = True
    return np.median(picture[~inside].astype(np.float64), axis=0)


def _shrink(maps: Float[np.ndarray, "n h w c"]) -> Float[np.ndarray, "n h2 w2 c"]:
    """Returns the means of STRIDE x STRIDE squares. Sides are first cut to a multiple of STRIDE."""
    n, h, w, c = maps.shape
    h, w = h // STRIDE * STRIDE, w // STRIDE * STRIDE
    return maps[:, :h, :w].reshape(n, h // STRIDE, STRIDE, w // STRIDE, STRIDE, c).mean((2, 4))
