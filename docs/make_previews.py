"""Makes the sheet of previews: a picture of the built-in model while it is made, without TAESD, and at the end.

    python docs/make_previews.py

Writes docs/sheets/previews.png.
"""

import argparse
from pathlib import Path

import numpy as np
from make_hints import draw

import sdjax

FILE = Path(__file__).parent / "sheets" / "previews.png"
PROMPT, SEED, STEPS = "a parrot on a green background", 3, 20


def main() -> None:
    """Makes and writes the sheet."""
    parser = argparse.ArgumentParser(description="Makes the sheet of previews with the built-in model.")
    parser.add_argument("--out", type=Path, default=FILE, metavar="FILE", help="default: docs/sheets/previews.png")
    args = parser.parse_args()
    cells = []
    session = sdjax.text_to_image.session(sdjax.load(), PROMPT, seed=SEED, num_steps=STEPS)
    for step in session:
        cells.append((f"after {step.done} calls", enlarged(step.preview()[0])))
    cells.append(("the picture", enlarged(session.result()[0])))
    data = draw(cells)
    args.out.write_bytes(data)
    print(f"{args.out}: {len(data)} bytes")


def enlarged(picture: np.ndarray) -> np.ndarray:
    """Returns a picture of 128 pixels a side, with its pixels as squares."""
    return picture.repeat(128 // len(picture), 0).repeat(128 // len(picture), 1)


if __name__ == "__main__":
    main()
