"""Makes the sheet of all samplers at few and many steps on the built-in model, with one prompt and one seed.

    python docs/make_sampler_sheet.py

Writes docs/sheets/samplers.png. Run it again when the built-in model or a sampler changes.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from make_pictures import of_64_colours
from PIL import Image, ImageDraw

import sdjax

FILE = Path(__file__).parent / "sheets" / "samplers.png"
STEPS = (10, 20, 50)
PROMPT, SEED = "a cat on a blue background", 0
COLUMNS = 5  # samplers beside each other
GAP = 2  # white pixels between pictures
LABEL = 14  # height of a line of text
SCALES = {"lcm": 1.0, "lcm_x0": 1.0, "tcd": 1.0}  # made for models that need no guidance
CFG_PP_SCALE = 1.2  # these samplers use scales near 1


def make_pictures(pipe: sdjax.Pipeline, name: str) -> list[np.ndarray]:
    """Returns one sampler's pictures, one for each of STEPS."""
    scale = CFG_PP_SCALE if name.endswith("cfg_pp") else SCALES.get(name)
    return [
        sdjax.text_to_image(pipe, PROMPT, seed=SEED, sampler=name, num_steps=steps, guidance_scale=scale)[0]
        for steps in STEPS
    ]


def draw(pictures: dict[str, Sequence[np.ndarray]]) -> bytes:
    """Returns the pictures of all samplers as one PNG of 64 colours, each sampler's in a row below its name."""
    side = max(picture.shape[0] for row in pictures.values() for picture in row)
    wide, high = len(STEPS) * (side + GAP) + LABEL, LABEL + side + GAP
    lines = -(-len(pictures) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * wide, LABEL + lines * high), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (name, row) in enumerate(pictures.items()):
        x, y = number % COLUMNS * wide, LABEL + number // COLUMNS * high
        pen.text((x, y + 1), name, "black")
        for index, picture in enumerate(row):
            sheet.paste(Image.fromarray(picture), (x + index * (side + GAP), y + LABEL))
            if number < COLUMNS:
                pen.text((x + index * (side + GAP) + side // 2 - 6, 1), str(STEPS[index]), "black")
    return of_64_colours(sheet)


def main() -> None:
    """Makes and writes the sheet."""
    parser = argparse.ArgumentParser(description="Makes the sheet of all samplers with the built-in model.")
    parser.add_argument("--out", type=Path, default=FILE, metavar="FILE", help="default: docs/sheets/samplers.png")
    args = parser.parse_args()
    pipe = sdjax.load()
    data = draw({name: make_pictures(pipe, name) for name in sdjax.samplers.SAMPLERS})
    args.out.write_bytes(data)
    print(f"{args.out}: {len(data)} bytes")


if __name__ == "__main__":
    main()
