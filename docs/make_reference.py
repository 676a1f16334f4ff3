"""Makes the picture of docs/reference.md with the built-in model: the same prompts and seeds for all, nothing chosen.

    python docs/make_reference.py

Its rows are the pictures by themselves, in the style of the first one, and with the first one as reference, at two
strengths each. Writes docs/sheets/reference.png. Run it again when the built-in model or a patch changes.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from make_pictures import of_64_colours
from PIL import Image, ImageDraw

import sdjax

Rows: TypeAlias = list[tuple[str, np.ndarray]]  # with their names, uint8 [b, h, w, 3] each
SUBJECTS = ("rocket", "strawberry", "cat", "bus", "penguin", "sunflower")
FIRST = "a rocket on a purple background"
STEPS = 25
GAP = 2  # white pixels between pictures
LABEL = 14  # height of a line of text
SHARES = (1.0, 0.3)


def make_rows(pipe: sdjax.Pipeline) -> Rows:
    """Returns the rows of the sheet."""
    prompts = [FIRST, *(f"a {name}" for name in SUBJECTS[1:])]

    def made(**options: Any) -> np.ndarray:
        return np.asarray(sdjax.text_to_image(pipe, prompts, seed=0, num_steps=STEPS, **options))

    plain = made()
    rows = [("each by itself", plain)]
    rows += [(f"style_aligned={share:g}", made(style_aligned=share)) for share in SHARES]
    for weight in SHARES:
        reference = sdjax.Reference(plain[0], weight)
        rows.append((f"reference, weight {weight:g}", made(references=[[], *[[reference]] * (len(prompts) - 1)])))
    return rows


def draw(rows: Rows) -> bytes:
    """Returns the rows as one PNG of 64 colours, each below its name."""
    side, count = rows[0][1].shape[1], len(rows[0][1])
    high = LABEL + side + 2 * GAP
    sheet = Image.new("RGB", (count * (side + GAP) - GAP, len(rows) * high), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (name, pictures) in enumerate(rows):
        pen.text((0, number * high + 1), name, "black")
        for i, picture in enumerate(pictures):
            sheet.paste(Image.fromarray(picture), (i * (side + GAP), number * high + LABEL))
    return of_64_colours(sheet.resize((2 * sheet.width, 2 * sheet.height), Image.Resampling.NEAREST))


def write(page: str, make_rows: Callable[[sdjax.Pipeline], Rows]) -> None:
    """Makes and writes the sheet of a page of the manual, from the command line's flags."""
    file = Path(__file__).parent / "sheets" / f"{page}.png"
    parser = argparse.ArgumentParser(description=f"Makes the picture of docs/{page}.md with the built-in model.")
    parser.add_argument("--out", type=Path, default=file, metavar="FILE", help=f"default: docs/sheets/{page}.png")
    args = parser.parse_args()
    data = draw(make_rows(sdjax.load()))
    args.out.write_bytes(data)
    print(f"{args.out}: {len(data)} bytes")


if __name__ == "__main__":
    write("reference", make_rows)
