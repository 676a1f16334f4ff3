"""Makes the sheet of prompt weights on the built-in model: one seed for all, nothing chosen.

    python docs/make_prompts_sheet.py

Writes docs/sheets/prompts.png. Run it again when the built-in model or a rule of emphasis changes.
"""

import argparse
import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import sdjax

FILE = Path(__file__).parent / "sheets" / "prompts.png"
PROMPT = "a (red:{weight:g}) apple on a white background"
WEIGHTS = (0, 0.5, 1, 1.5, 2)
RULES = ("original", "comfyui", "compel")
SEED, STEPS = 3, 10
GAP, LABEL, NAME = 2, 14, 64  # pixels: between pictures, height of a line of text, width of a rule's name


def draw(pictures: np.ndarray) -> bytes:
    """Returns pictures [rules, weights, h, w, 3] as one PNG of 64 colours, with the names of rows and columns."""
    rules, weights, side = pictures.shape[:3]
    sheet = Image.new("RGB", (NAME + weights * (side + GAP), LABEL + rules * (side + GAP)), "white")
    pen = ImageDraw.Draw(sheet)
    for column, weight in enumerate(WEIGHTS):
        pen.text((NAME + column * (side + GAP), 0), f"{weight:g}", "black")
    for row, rule in enumerate(RULES):
        pen.text((0, LABEL + row * (side + GAP) + side // 2), rule, "black")
        for column in range(weights):
            place = NAME + column * (side + GAP), LABEL + row * (side + GAP)
            sheet.paste(Image.fromarray(pictures[row, column]), place)
    out = io.BytesIO()
    sheet.quantize(64).save(out, "PNG", optimize=True)
    return out.getvalue()


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    requests = [
        sdjax.Request(PROMPT.format(weight=weight), seed=SEED, num_steps=STEPS, emphasis=rule)
        for rule in RULES
        for weight in WEIGHTS
    ]
    made = np.asarray(sdjax.generate(sdjax.load("builtin"), requests))
    FILE.write_bytes(draw(made.reshape(len(RULES), len(WEIGHTS), *made.shape[1:])))
    print(FILE)


if __name__ == "__main__":
    main()
