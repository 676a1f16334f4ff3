"""Makes the sheet of hints: one picture of the built-in model, enlarged, and what each preprocessor makes of it.

    python docs/make_hints.py

Writes docs/sheets/hints.png. Run it again when a preprocessor changes. The last cell is a pose, drawn from joints that
are written here: the networks that find poses have files of their own.
"""

import argparse
from pathlib import Path

import numpy as np
from make_pictures import of_64_colours
from PIL import Image, ImageDraw

import sdjax
from sdjax.pictures.hints import PLAIN, poses

FILE = Path(__file__).parent / "sheets" / "hints.png"
PROMPT, SEED = "a cat on a white background", 0
SIDE = 256  # pixels of the picture from which hints are made
SHOWN = 128  # pixels of a cell
LABEL, GAP, COLUMNS = 14, 4, 5
OPTIONS = {"tile_resample": {"down_sampling_rate": 8.0}, "shuffle": {"cell": 64}, "canny": {"low_threshold": 50.0}}
JOINTS = np.array([  # x and y as shares: nose, neck, arms, legs, eyes, ears
    [.50, .14], [.50, .28], [.38, .29], [.28, .42], [.20, .30], [.62, .29], [.72, .42], [.80, .54], [.43, .56],
    [.41, .74], [.40, .93], [.57, .56], [.60, .74], [.66, .91], [.47, .11], [.53, .11], [.43, .13], [.57, .13],
])  # fmt: skip


def draw(cells: list[tuple[str, np.ndarray]]) -> bytes:
    """Returns the cells as one PNG of 64 colours, each below its name."""
    wide, high = SHOWN + GAP, LABEL + SHOWN + GAP
    sheet = Image.new("RGB", (COLUMNS * wide, -(-len(cells) // COLUMNS) * high), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (name, picture) in enumerate(cells):
        x, y = number % COLUMNS * wide, number // COLUMNS * high
        pen.text((x, y + 1), name, "black")
        sheet.paste(Image.fromarray(picture).resize((SHOWN, SHOWN), Image.Resampling.BOX), (x, y + LABEL))
    return of_64_colours(sheet)


def main() -> None:
    """Makes and writes the sheet."""
    parser = argparse.ArgumentParser(description="Makes the sheet of hints with the built-in model.")
    parser.add_argument("--out", type=Path, default=FILE, metavar="FILE", help="default: docs/sheets/hints.png")
    args = parser.parse_args()
    small = np.asarray(sdjax.text_to_image(sdjax.load(), PROMPT, seed=SEED))[0]
    picture = np.asarray(Image.fromarray(small).resize((SIDE, SIDE), Image.Resampling.LANCZOS))
    hints = [(name, sdjax.make_hint(picture, name, **OPTIONS.get(name, {}))) for name in PLAIN]
    pose = poses.draw_poses([poses.Pose(JOINTS)], SIDE, SIDE)
    data = draw([("the picture", picture), *hints, ("openpose (drawn)", pose)])
    args.out.write_bytes(data)
    print(f"{args.out}: {len(data)} bytes")


if __name__ == "__main__":
    main()
