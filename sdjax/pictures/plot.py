"""Labelled grids of pictures over one, two or three axes, as A1111's X/Y/Z plot: columns, rows and sheets."""

import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFont

GAP = 4  # pixels between pictures, and around labels
SHORTEST, LONGEST = 10, 30  # font sizes in pixels
MAX_LINES = 6  # of a label
BLACK, WHITE = (0, 0, 0), (255, 255, 255)

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def plot(
    pictures: Sequence[UInt8[np.ndarray, "_ _ 3"]], labels: Sequence[Sequence[str]]
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Returns the pictures in a labelled grid. `labels` are those of columns, rows and sheets; the last two may lack.

    Pictures come sheet by sheet, in each sheet row by row. Pictures of different sizes are put at the top left of cells
    of the largest size. A sheet's label is above it. Long labels are broken into lines and then cut.

    Raises ValueError unless there are one to three axes, and one picture for each cell.
    """
    if not 1 <= len(labels) <= 3:
        raise ValueError(f"a plot has one to three axes; got {len(labels)}")
    all_labels: list[Sequence[str]] = [*labels, [""], [""]]
    columns, rows, sheets = all_labels[:3]
    if len(pictures) != len(columns) * len(rows) * len(sheets):
        raise ValueError(
            f"a plot of {len(columns)} columns, {len(rows)} rows and {len(sheets)} sheets needs as many pictures; got "
            f"{len(pictures)}"
        )
    height, width = (max(picture.shape[axis] for picture in pictures) for axis in (0, 1))
    font = _font(min(max(round(width / 12), SHORTEST), LONGEST))
    left = min(max((_width(font, label) for label in rows), default=0), width)
    left += 2 * GAP if left else 0
    tops = [_lines(font, label, width) for label in columns]
    sides = [_lines(font, label, left - 2 * GAP) for label in rows]
    line = _line_height(font)
    top = max(map(len, tops)) * line + (2 * GAP if any(tops) else 0)
    full = left + len(columns) * (width + GAP) + GAP
    heads = [_lines(font, label, full - 2 * GAP) for label in sheets]
    head = max(map(len, heads)) * line + (2 * GAP if any(heads) else 0)
    sheet = head + top + len(rows) * (height + GAP) + GAP
    image = PillowImage.new("RGB", (full, sheet * len(sheets)), WHITE)
    draw = ImageDraw.Draw(image)
    for z, y, x in itertools.product(range(len(sheets)), range(len(rows)), range(len(columns))):
        at_x, at_y = left + GAP + x * (width + GAP), z * sheet + head + top + GAP + y * (height + GAP)
        if x == 0 and y == 0:
            _write(draw, font, heads[z], full / 2, z * sheet + head / 2)
        if y == 0:
            _write(draw, font, tops[x], at_x + width / 2, z * sheet + head + top / 2)
        if x == 0:
            _write(draw, font, sides[y], left / 2, at_y + height / 2)
        picture = pictures[(z * len(rows) + y) * len(columns) + x]
        image.paste(PillowImage.fromarray(picture), (at_x, at_y))
    return np.array(image)


def _font(size: int) -> Font:
    try:
        return ImageFont.load_default(size)
    except ImportError:  # Pillow without FreeType has one small font
        return ImageFont.load_default()


def _width(font: Font, text: str) -> int:
    return int(np.ceil(max((font.getbbox(line)[2] for line in text.split("\n")), default=0)))


def _line_height(font: Font) -> int:
    return int(np.ceil(font.getbbox("Ag|")[3])) + 2


def _lines(font: Font, label: str, width: int) -> list[str]:
    """Returns the label's lines: broken at spaces, and inside words that are too wide. At most MAX_LINES."""
    lines: list[str] = []
    for word in "".join(one if one.isprintable() else " " for one in label).split():
        if lines and _width(font, f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
            continue
        while word and len(lines) <= MAX_LINES:
            fits = next((n for n in range(min(len(word), width), 1, -1) if _width(font, word[:n]) <= width), 1)
            lines.append(word[:fits])
            word = word[fits:]
    return lines if len(lines) <= MAX_LINES else [*lines[: MAX_LINES - 1], "..."]


def _write(draw: ImageDraw.ImageDraw, font: Font, lines: Sequence[str], x: float, y: float) -> None:
    """Writes lines centred on (x, y)."""
    step = _line_height(font)
    for i, line in enumerate(lines):
        at = (round(x - _width(font, line) / 2), round(y + (i - len(lines) / 2) * step))
        draw.text(at, line, BLACK, font=font)
