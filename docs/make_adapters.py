"""Makes the picture of docs/adapters.md: the LoRA of docs/make_adapter_training.py at several weights, on one seed.

    python docs/make_adapter_training.py --workdir runs/adapters
    python docs/make_adapters.py --workdir runs/adapters

Writes docs/sheets/adapters.png. Nothing is chosen.
"""

import argparse
from pathlib import Path

from make_pictures import of_64_colours
from PIL import Image

import sdjax

FILE = Path(__file__).parent / "sheets" / "adapters.png"
PROMPTS = ["a sks octopus on a green background", "a cat on a green background"]
WEIGHTS = (0, 0.25, 0.5, 0.75, 1)


def main() -> None:
    """Makes and writes the grid, in 64 colours. All pictures share one program."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True, help="that of make_adapter_training.py")
    folder = parser.parse_args().workdir / "lora"
    request = sdjax.Request(seed=0, num_steps=25, lora_dir=str(folder))
    axes = {"loras": [f"adapter:{weight}" for weight in WEIGHTS], "prompt": PROMPTS}
    FILE.write_bytes(of_64_colours(Image.fromarray(sdjax.sweep(sdjax.load(), request, axes).grid())))


if __name__ == "__main__":
    main()
