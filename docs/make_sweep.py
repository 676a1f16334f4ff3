"""Makes the labelled grid of docs/batches.md with the built-in model: one prompt, one seed, nothing chosen.

    python docs/make_sweep.py

Writes docs/sheets/sweep.png. Run it again when the built-in model or a sampler changes.
"""

import argparse
from pathlib import Path

from make_pictures import of_64_colours
from PIL import Image

import sdjax

FILE = Path(__file__).parent / "sheets" / "sweep.png"
REQUEST = sdjax.Request("a cat on a blue background", seed=42, num_steps=10)
AXES = {"guidance_scale": [1.5, 3.0, 7.5], "sampler": ["ddim", "dpmpp_2m", "euler_ancestral"]}


def main() -> None:
    """Makes and writes the grid, in 64 colours."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    grid = sdjax.sweep(sdjax.load(), REQUEST, AXES).grid()
    FILE.write_bytes(of_64_colours(Image.fromarray(grid)))


if __name__ == "__main__":
    main()
