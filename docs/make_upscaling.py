"""Makes the picture of the page on upscaling: drawings of the built-in model, four times as large.

    python docs/make_upscaling.py RealESRGAN_x4plus_anime_6B.pth

Writes docs/sheets/small_upscaler.png: nearest pixels, Lanczos's filter, and the upscaler of the file.
"""

import argparse
from pathlib import Path

from make_pictures import place

import sdjax
from sdjax import pictures

FOLDER = Path(__file__).parent / "sheets"
PROMPTS = ("a cat on a blue background", "a strawberry on a white background")
STEPS, TIMES = 30, 4


def main() -> None:
    """Makes and writes the sheet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="the upscaler's file")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="default: %(default)s")
    args = parser.parse_args()
    small = sdjax.text_to_image(sdjax.load(), PROMPTS, seed=0, num_steps=STEPS)
    large = sdjax.enlarge(args.model, small, times=TIMES)
    rows = []
    for drawing, made in zip(small, large):
        side = TIMES * len(drawing)
        rows.append([*(pictures.resize(drawing, side, side, method) for method in ("nearest", "lanczos")), made])
    data = place(rows)
    (args.folder / "small_upscaler.png").write_bytes(data)
    print(f"small_upscaler.png: {len(data)} bytes")


if __name__ == "__main__":
    main()
