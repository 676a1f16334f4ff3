"""Makes the sheet of what a relighting network is given: foreground, gradients and backdrops.

    python docs/make_relighting.py

Writes docs/sheets/relighting.png. The foreground is a picture of the built-in model, without its white background.
"""

import argparse
from pathlib import Path

import numpy as np
from make_hints import draw
from PIL import Image

import sdjax
from sdjax.tasks.relight import BACKDROP, LIGHT, SIDES, foregrounds, gradient

FILE = Path(__file__).parent / "sheets" / "relighting.png"
PROMPT, SEED = "a strawberry on a white background", 0
SIDE = 256  # pixels
WHITE = 235  # pixels are background if all three levels are above


def main() -> None:
    """Makes and writes the sheet."""
    parser = argparse.ArgumentParser(description="Makes the sheet of a relighting network's inputs.")
    parser.add_argument("--out", type=Path, default=FILE, metavar="FILE", help="default: docs/sheets/relighting.png")
    args = parser.parse_args()
    small = np.asarray(sdjax.text_to_image(sdjax.load(), PROMPT, seed=SEED))[0]
    picture = np.asarray(Image.fromarray(small).resize((SIDE, SIDE), Image.Resampling.LANCZOS))
    (front,) = foregrounds(picture, (picture < WHITE).any(-1))
    lights = [(f"--light {side}", gradient(side, SIDE, SIDE, LIGHT)) for side in SIDES]
    behind = [(f"--backdrop {side}", gradient(side, SIDE, SIDE, BACKDROP)) for side in ("grey", "left", "bottom")]
    data = draw([("the picture", picture), ("its foreground", front), *lights, *behind])
    args.out.write_bytes(data)
    print(f"{args.out}: {len(data)} bytes")


if __name__ == "__main__":
    main()
