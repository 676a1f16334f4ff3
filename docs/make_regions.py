"""Makes the picture of docs/regions.md with the built-in model: the same prompt and seeds in all rows.

    python docs/make_regions.py

The picture's prompt has a rocket and a strawberry. Two regions ask for the strawberry on the left and for the rocket on
the right, with two weights. Writes docs/sheets/regions.png. Run it again when the built-in model or the patch changes.
"""

import numpy as np
from make_reference import Rows, write

import sdjax

PROMPT = "a rocket and a strawberry on a green background"
LEFT, RIGHT = (0, 0, 0.5, 1), (0.5, 0, 0.5, 1)
WEIGHTS = (0.7, 1.0)
COUNT, STEPS = 6, 20


def make_rows(pipe: sdjax.Pipeline) -> Rows:
    """Returns the rows of the sheet."""

    def made(*regions: sdjax.Region) -> np.ndarray:
        options = {"seed": list(range(COUNT)), "num_steps": STEPS}
        return np.asarray(sdjax.text_to_image(pipe, PROMPT, regions=regions, **options))

    rows = [("without regions", made())]
    for weight in WEIGHTS:
        left = sdjax.Region("a strawberry on a green background", LEFT, weight)
        right = sdjax.Region("a rocket on a green background", RIGHT, weight)
        rows.append((f"left: a strawberry, right: a rocket, weight {weight:g}", made(left, right)))
    return rows


if __name__ == "__main__":
    write("regions", make_rows)
