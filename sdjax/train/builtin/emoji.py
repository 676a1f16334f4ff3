"""The built-in model's pictures and captions, made on the fly from a colour emoji font.

A picture shows one or two subjects on a coloured background. A small grammar makes the caption ("a small fox at the
top of a green background", "a cat and a rocket"). Batch n depends only on the seed and n. So a resumed run sees the
same pictures, and no picture has to be stored.

The font is Noto Color Emoji (SIL Open Font License 1.1), Debian's package fonts-noto-color-emoji. It is read from the
system's font folders and is not part of this repository.
"""

import dataclasses
import functools
import pathlib
import zlib
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from sdjax.train.builtin import subjects

FONT_PATHS = tuple(
    pathlib.Path(folder, "NotoColorEmoji.ttf")
    for folder in (
        "/usr/share/fonts/truetype/noto", "/usr/share/fonts/noto", "/usr/share/fonts/google-noto-emoji",
        "/usr/share/fonts/google-noto-color-emoji-fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts",
    )
)  # fmt: skip
FONT_SIZE = 109  # the one size of the font's bitmaps, in Pillow's count; they are 136 x 128 pixels

SIZES = tuple(range(20, 58, 2))  # the sides that sprites are kept at, in 64ths of the picture's side
LONE, SMALL, BIG, PAIR = (32, 46), (22, 26), (50, 56), (24, 30)  # first and last side, by what the caption says
JITTER = 8  # a background differs from its colour's value by up to this much, of 255, in each channel
PLACES = {  # where a subject lies along x and y, 0 to 1; None: anywhere
    "on": (None, None), "on the left of": (0.0, None), "on the right of": (1.0, None), "at the top of": (None, 0.0),
    "at the bottom of": (None, 1.0), "in the middle of": (0.5, 0.5),
}  # fmt: skip
SHARES = {"two": 0.25, "above": 0.25, "silent": 0.1, "sized": 0.3, "placed": 0.25}  # how often a caption says so

_HELD_OUT = 0  # of the ten classes into which a checksum of subject and colour puts every pair


class Scene(NamedTuple):
    """What a picture shows: indices into `subjects.names()` and COLOURS, and where each subject is drawn.

    `boxes` are (size, left, top), size one of SIZES, in 64ths of the picture's side; `rgb` is the background, 0 to 255.
    """

    subjects: tuple[int, ...]
    colour: int
    boxes: tuple[tuple[int, int, int], ...]
    rgb: tuple[int, int, int]
    caption: str


def find_font(path: str | pathlib.Path | None = None) -> pathlib.Path:
    """Returns the font file: `path` if given, else the first of FONT_PATHS that exists.

    Raises FileNotFoundError, saying how to get the font.
    """
    for candidate in FONT_PATHS if path is None else (pathlib.Path(path),):
        if candidate.expanduser().is_file():
            return candidate.expanduser()
    where = "none of the usual folders holds it" if path is None else f"{path} is no file"
    raise FileNotFoundError(
        f"the font NotoColorEmoji.ttf is needed to draw the pictures, but {where}; install it (Debian, Ubuntu: "
        "apt install fonts-noto-color-emoji; Fedora: google-noto-color-emoji-fonts) or name the file by font="
    )


@functools.cache
def held_out() -> np.ndarray:
    """Returns which (subject, colour) pairs are never trained on, bool [subjects, colours]; about a tenth of them."""
    table = [
        [zlib.crc32(f"{name}|{colour}".encode()) % 10 == _HELD_OUT for colour in subjects.COLOURS]
        for name in subjects.names()
    ]
    return np.array(table)


@dataclasses.dataclass(frozen=True, eq=False)
class Sprites:
    """Every subject at every size of SIZES times side / 64: `pixels[k]` is uint8 [subjects, s, s, 4].

    The first three channels are colour times opacity, the last is 255 - opacity, so that drawing is a product and sum.
    """

    side: int
    pixels: tuple[UInt8[np.ndarray, "n s s 4"], ...]

    @classmethod
    def render(cls, side: int = 64, font: str | pathlib.Path | None = None) -> "Sprites":
        """Returns the sprites for pictures of `side` pixels, a multiple of 64, drawn from the font (`find_font`)."""
        from PIL import Image, ImageDraw, ImageFont  # not needed to read captions

        if side % 64:
            raise ValueError(f"the side of the pictures must be a multiple of 64 pixels; got {side}")
        path = find_font(font)
        try:
            letters = ImageFont.truetype(str(path), FONT_SIZE)
        except OSError as error:  # FreeType's, which says no more than that
            raise ValueError(f"{path} cannot be used as the font of the pictures ({error})") from error
        stacks: list[list[np.ndarray]] = [[] for _ in SIZES]
        for character in subjects.CHARACTERS:
            canvas = Image.new("RGBA", (160, 160))
            ImageDraw.Draw(canvas).text((8, 8), character, font=letters, embedded_color=True)
            box = canvas.getbbox()
            if box is None:
                raise ValueError(f"the font holds no coloured picture of {character}")
            glyph = canvas.crop(box)
            square = Image.new("RGBA", (max(glyph.size),) * 2)
            square.paste(glyph, ((square.width - glyph.width) // 2, (square.height - glyph.height) // 2))
            # Multiply by the opacity before resizing, so that transparent pixels do not colour their neighbours
            square = square.convert("RGBa")
            for stack, size in zip(stacks, SIZES):
                small = np.asarray(square.resize((size * side // 64,) * 2, Image.Resampling.LANCZOS))
                stack.append(np.concatenate([small[..., :3], 255 - small[..., 3:]], axis=-1))
        return cls(side, tuple(np.stack(stack) for stack in stacks))

    def draw(self, scene: Scene) -> UInt8[np.ndarray, "h w 3"]:
        """Returns the scene's picture."""
        image = np.empty((self.side, self.side, 3), np.uint8)
        image[...] = scene.rgb
        for subject, box in zip(scene.subjects, scene.boxes):
            sprite = self.pixels[SIZES.index(box[0])][subject]
            left, top = (place * self.side // 64 for place in box[1:])
            part = image[top : top + len(sprite), left : left + len(sprite)]
            blended = sprite[..., :3] + (part.astype(np.uint16) * sprite[..., 3:] + 127) // 255
            part[...] = np.minimum(blended, 255)
        return image


def scenes(seed: int, n: int, count: int) -> list[Scene]:
    """Returns the scenes of batch `n` of a seed. Held-out pairs do not occur."""
    rng = np.random.default_rng([seed, n])
    return [draw_scene(rng) for _ in range(count)]


def collages(seed: int, n: int, count: int) -> list[Scene]:
    """Returns batch `n` of a seed: scenes with four subjects, one in each quarter, and no caption.

    They show an autoencoder about three times as many subjects as `scenes` for the same work. Held-out pairs do not
    occur.
    """
    rng = np.random.default_rng([seed, n])
    out = []
    for _ in range(count):
        colour, rgb = _draw_background(rng)
        chosen = _draw_subjects(colour, 4, rng)
        boxes = []
        for quarter in range(4):
            size = _size((PAIR[0], 32), rng)
            left, top = (32 * side + _corner(None, 32 - size, rng) for side in (quarter % 2, quarter // 2))
            boxes.append((size, left, top))
        out.append(Scene(chosen, colour, tuple(boxes), rgb, ""))
    return out


def draw_scene(rng: np.random.Generator) -> Scene:
    """Returns a random scene of one or two subjects. Held-out pairs of subject and colour do not occur."""
    u = rng.random(6)
    count = 2 if u[0] < SHARES["two"] else 1
    colour, rgb = _draw_background(rng)
    chosen = _draw_subjects(colour, count, rng)
    if count == 2:
        return _pair(chosen, colour, rgb, above=u[1] < SHARES["above"], silent=u[2] < SHARES["silent"], rng=rng)
    word, sides = "", LONE
    if u[1] < SHARES["sized"]:
        word, sides = ("small ", SMALL) if u[3] < 0.5 else ("big ", BIG)
    place = "on"
    if u[4] < SHARES["placed"] and word != "big ":  # a big one only fits in the middle
        place = list(PLACES)[1 + int(u[5] * (len(PLACES) - 1))]
    size = _size(sides, rng)
    x, y = PLACES[place]
    box = (size, _corner(x, 64 - size, rng), _corner(y, 64 - size, rng))
    caption = _noun(chosen[0], word)
    if place != "on" or u[2] >= SHARES["silent"]:
        caption += f" {place} {_background(colour)}"
    return Scene(chosen, colour, (box,), rgb, caption)


def _pair(
    chosen: tuple[int, ...],
    colour: int,
    rgb: tuple[int, int, int],
    *,
    above: bool,
    silent: bool,
    rng: np.random.Generator,
) -> Scene:  # fmt: skip
    """Returns a scene of two subjects, the first on the left of the second or above it."""
    sizes = [_size(PAIR, rng) for _ in chosen]
    along = [int(rng.integers(0, 32 - size + 1)) + start for size, start in zip(sizes, (0, 32))]
    across = [_corner(None, 64 - size, rng) for size in sizes]
    boxes = tuple((size, *((b, a) if above else (a, b))) for size, a, b in zip(sizes, along, across))
    caption = f"{_noun(chosen[0])} {'above' if above else 'and'} {_noun(chosen[1])}"
    return Scene(chosen, colour, boxes, rgb, caption if silent else f"{caption} on {_background(colour)}")


def _draw_background(rng: np.random.Generator) -> tuple[int, tuple[int, int, int]]:
    """Returns an index into COLOURS and a value near that colour's."""
    colour = int(rng.integers(len(subjects.COLOURS)))
    value = np.array(list(subjects.COLOURS.values())[colour]) + rng.integers(-JITTER, JITTER + 1, 3)
    red, green, blue = (int(v) for v in np.clip(value, 0, 255))
    return colour, (red, green, blue)


def _draw_subjects(colour: int, count: int, rng: np.random.Generator) -> tuple[int, ...]:
    """Returns different subjects, none of them held out on the colour."""
    allowed = np.flatnonzero(~held_out()[:, colour])
    return tuple(int(i) for i in rng.choice(allowed, count, replace=False))


def _size(sides: tuple[int, int], rng: np.random.Generator) -> int:
    return int(rng.integers(sides[0] // 2, sides[1] // 2 + 1)) * 2


def _corner(place: float | None, room: int, rng: np.random.Generator) -> int:
    """Returns where a subject begins along an axis with `room` to spare: anywhere, or within 2 of `place`."""
    if place is None:
        return int(rng.integers(0, room + 1))
    return int(np.clip(round(place * room) + rng.integers(-2, 3), 0, room))


def _noun(subject: int, word: str = "") -> str:
    return subjects.with_article(word + subjects.names()[subject])


def _background(colour: int) -> str:
    return f"{subjects.with_article(list(subjects.COLOURS)[colour])} background"
