"""Makes the picture of docs/merging.md: eight mixtures of the built-in model and one that was taught a subject.

    python docs/make_adapter_training.py --workdir runs/adapters
    python docs/make_merge_grid.py --workdir runs/adapters

Writes docs/sheets/merge-grid.png: the ratio from left to right, the prompts from top down. The program that samples is
compiled once for all ratios.
"""

import argparse
import pathlib

from make_dreambooth import PROMPTS
from make_pictures import of_64_colours
from PIL import Image

import sdjax
from sdjax.scripts.main import main as command

RATIOS = (0, 0.2, 0.4, 0.6, 0.8, 1, 1.2, 1.5)
SHOWN = 3  # prompts of the picture


def main() -> None:
    """Converts the trained model, makes the pictures and writes the grid."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="that of make_adapter_training.py")
    folder = parser.parse_args().workdir
    other = folder / "taught.safetensors"
    if not other.exists() and (status := command(["convert", str(folder / "lora"), str(other)])):
        raise SystemExit(status)
    pipe = sdjax.load()
    request = sdjax.Request(num_steps=25, seed=0, merge_with=sdjax.merge_direction(pipe, other))
    sheet = sdjax.sweep(pipe, request, {"merge": RATIOS, "prompt": PROMPTS[:SHOWN]}, at_once=len(RATIOS))
    place = pathlib.Path(__file__).parent / "sheets" / "merge-grid.png"
    place.write_bytes(of_64_colours(Image.fromarray(sheet.grid())))


if __name__ == "__main__":
    main()
