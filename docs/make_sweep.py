"""Makes the labelled grid of docs/batches.md with the built-in model: one prompt, one seed, nothing chosen.

    python docs/make_sweep.py

Writes docs/sheets/sweep.png. Run it again when the built-in model or a sampler changes.
"""

import io
from pathlib import Path

from PIL import Image

import sdjax

FILE = Path(__file__).parent / "sheets" / "sweep.png"
REQUEST = sdjax.Request("a cat on a blue background", seed=42, num_steps=10)
AXES = {"guidance_scale": [1.5, 3.0, 7.5], "sampler": ["ddim", "dpmpp_2m", "euler_ancestral"]}


def main() -> None:
    """Makes and writes the grid, in 64 colours."""
    grid = Image.fromarray(sdjax.sweep(sdjax.load(), REQUEST, AXES).grid())
    data = io.BytesIO()
    grid.quantize(64, dither=Image.Dither.NONE).save(data, "PNG", optimize=True)
    FILE.write_bytes(data.getvalue())


if __name__ == "__main__":
    main()
