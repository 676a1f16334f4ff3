"""Makes the sheet of guidance rules on the built-in model: the same prompts and seeds for all, nothing chosen.

    python docs/make_guidance_sheet.py

Writes docs/sheets/guidance.png. Run it again when the built-in model or a rule changes.
"""

import argparse
from pathlib import Path

import numpy as np
from make_pictures import of_64_colours
from PIL import Image, ImageDraw

import sdjax

FILE = Path(__file__).parent / "sheets" / "guidance.png"
PROMPTS = ("a cat on a blue background", "a rocket on a green background", "a red apple on a white background")
STEPS = 20
GAP = 2  # white pixels between pictures
LABEL = 14  # height of a line of text
COLUMNS = 5  # cells beside each other
CELLS: tuple[tuple[str, float, str | None, dict[str, object]], ...] = (
    ("cfg, scale 1", 1.0, None, {}),
    ("cfg, scale 3", 3.0, None, {}),
    ("cfg, scale 15", 15.0, None, {}),
    ("rescale", 15.0, "rescale", {}),
    ("apg, eta 0", 15.0, "apg", {"eta": 0.0, "threshold": 5.0}),
    ("cfg_zero_star", 15.0, "cfg_zero_star", {"zero_steps": 0}),
    ("tcfg", 15.0, "tcfg", {}),
    ("dynamic thr.", 15.0, "dynamic_thresholding", {"mimic_scale": 3.0, "percentile": 0.97}),
    ("cfg_norm", 15.0, "cfg_norm", {}),
    ("interval 0 to .5", 15.0, "interval", {"stop": 0.5}),
    ("curve to 1", 15.0, "curve", {}),
    ("mahiro", 3.0, "mahiro", {}),
    ("pag, scale 1", 1.0, "pag", {"strength": 2.0}),
    ("seg, scale 1", 1.0, "seg", {"strength": 2.0}),
    ("sag, scale 1", 1.0, "sag", {}),
)


def make_cell(pipe: sdjax.Pipeline, scale: float, rule: str | None, options: dict[str, object]) -> np.ndarray:
    """Returns one picture for each prompt, uint8 [b, h, w, 3]."""
    requests = [
        sdjax.Request(prompt, seed=seed, num_steps=STEPS, guidance_scale=scale, guidance=rule, guidance_options=options)
        if rule
        else sdjax.Request(prompt, seed=seed, num_steps=STEPS, guidance_scale=scale)
        for seed, prompt in enumerate(PROMPTS)
    ]
    return np.asarray(sdjax.generate(pipe, requests))


def draw(cells: list[tuple[str, np.ndarray]]) -> bytes:
    """Returns the cells as one PNG of 64 colours, each below its name."""
    side = cells[0][1].shape[1]
    wide, high = len(PROMPTS) * (side + GAP) + 3 * GAP, LABEL + side + 2 * GAP
    sheet = Image.new("RGB", (COLUMNS * wide, -(-len(cells) // COLUMNS) * high), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (name, pictures) in enumerate(cells):
        x, y = number % COLUMNS * wide, number // COLUMNS * high
        pen.text((x, y + 1), name, "black")
        for i, picture in enumerate(pictures):
            sheet.paste(Image.fromarray(picture), (x + i * (side + GAP), y + LABEL))
    return of_64_colours(sheet)


def main() -> None:
    """Makes and writes the sheet."""
    parser = argparse.ArgumentParser(description="Makes the sheet of guidance rules with the built-in model.")
    parser.add_argument("--out", type=Path, default=FILE, metavar="FILE", help="default: docs/sheets/guidance.png")
    args = parser.parse_args()
    pipe = sdjax.load()
    data = draw([(name, make_cell(pipe, *how)) for name, *how in CELLS])
    args.out.write_bytes(data)
    print(f"{args.out}: {len(data)} bytes")


if __name__ == "__main__":
    main()
