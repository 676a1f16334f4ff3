"""Makes the picture of docs/regions.md with the built-in model: the same prompt and seeds in all rows, nothing chosen.

    python docs/make_regions.py

The picture's prompt has a rocket and a strawberry. Two regions ask for the strawberry on the left and for the rocket on
the right, with two weights. Writes docs/sheets/regions.png. Run it again when the built-in model or the patch changes.
"""

import argparse
from pathlib import Path

import numpy as np
from make_reference import draw

import sdjax

FILE = Path(__file__).parent / "sheets" / "regions.png"
PROMPT = "a rocket and a strawberry on a green background"
LEFT, RIGHT = (0, 0, 0.5, 1), (0.5, 0, 0.5, 1)
WEIGHTS = (0.7, 1.0)
COUNT, STEPS = 6, 20


def make_rows(pipe: sdjax.Pipeline) -> list[tuple[str, np.ndarray]]:
    """Returns the rows with their names, uint8 [b, h, w, 3] each."""

    def made(*regions: sdjax.Region) -> np.ndarray:
        options = {"seed": list(range(COUNT)), "num_steps": STEPS}
        return np.asarray(sdjax.text_to_image(pipe, PROMPT, regions=regions, **options))

    rows = [("without regions", made())]
    for weight in WEIGHTS:
        left = sdjax.Region("a strawberry on a green background", LEFT, weight)
        right = sdjax.Region("a rocket on a green background", RIGHT, weight)
        rows.append((f"left: a strawberry, right: a rocket, weight {weight:g}", made(left, right)))
    return rows


def main() -> None:
    """Makes and writes the sheet."""
    parser = argparse.ArgumentParser(description="Makes the picture of docs/regions.md with the built-in model.")
    parser.add_argument("--out", type=Path, default=FILE, metavar="FILE", help="default: docs/sheets/regions.png")
    args = parser.parse_args()
    data = draw(make_rows(sdjax.load()))
    args.out.write_bytes(data)
    print(f"{args.out}: {len(data)} bytes")


if __name__ == "__main__":
    main()
