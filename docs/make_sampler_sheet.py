"""Makes the sheet of eighteen samplers at few and many steps on the built-in model, with one prompt and one seed.

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
NAMES = (
    *("ddim", "ddpm", "plms", "pndm", "dpm_solver", "dpm_solver_singlestep"),
    *("dpm_solver_adaptive", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_2s_ancestral", "dpm2", "dpm2_ancestral"),
    *("euler", "euler_ancestral", "heun", "lms", "unipc", "lcm"),
)
PROMPT, SEED = "a cat on a blue background", 0
COLUMNS = 6  # samplers beside each other
GAP = 2  # white pixels between pictures
LABEL = 14  # height of a line of text


def make_column(pipe: sdjax.Pipeline, name: str) -> list[np.ndarray]:
    """Returns one sampler's pictures, one for each of STEPS."""
    scale = 1.0 if name == "lcm" else None
    return [
        sdjax.text_to_image(pipe, PROMPT, seed=SEED, sampler=name, num_steps=steps, guidance_scale=scale)[0]
        for steps in STEPS
    ]


def draw(columns: dict[str, Sequence[np.ndarray]]) -> bytes:
    """Returns the columns of pictures as one PNG of 64 colours, each below its name."""
    side = max(picture.shape[0] for column in columns.values() for picture in column)
    wide, high = 2 * side + GAP, LABEL + len(STEPS) * (side + GAP)
    rows = -(-len(columns) // COLUMNS)
    left = 20  # for the numbers of steps
    sheet = Image.new("RGB", (left + COLUMNS * wide, rows * high), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (name, column) in enumerate(columns.items()):
        x, y = left + number % COLUMNS * wide, number // COLUMNS * high
        pen.text((x, y + 1), name, "black")
        for steps, picture, top in zip(STEPS, column, range(y + LABEL, y + high, side + GAP)):
            sheet.paste(Image.fromarray(picture), (x, top))
            pen.text((2, top + side // 2 - 5), str(steps), "black")
    return of_64_colours(sheet)


def main() -> None:
    """Makes and writes the sheet."""
    parser = argparse.ArgumentParser(description="Makes the sheet of eighteen samplers with the built-in model.")
    parser.add_argument("--out", type=Path, default=FILE, metavar="FILE", help="default: docs/sheets/samplers.png")
    args = parser.parse_args()
    pipe = sdjax.load()
    data = draw({name: make_column(pipe, name) for name in NAMES})
    args.out.write_bytes(data)
    print(f"{args.out}: {len(data)} bytes")


if __name__ == "__main__":
    main()
