"""Makes the pictures of docs/training-adapters.md: the built-in model before and after it was taught a subject.

    python docs/make_adapter_training.py --workdir runs/adapters

The subject is that of docs/make_dreambooth.py. Runs `sdjax train --config lora`, which continues a stopped run, and
writes docs/sheets/training-lora.png: the training pictures, what the model drew before, and what it draws after.
"""

import argparse
import pathlib
import time

import numpy as np
from make_dreambooth import NAME, PROMPTS, SHOWN, class_pictures, subject_pictures
from make_pictures import FOLDER, place
from PIL import Image

import sdjax
from sdjax.scripts.main import main as command


def main() -> None:
    """Makes the data, trains, and writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="where data and checkpoints go")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--batch", type=int, default=8)
    flags = parser.parse_args()
    before = sdjax.load()
    subject, others = flags.workdir / "subject", flags.workdir / "class"
    subject_pictures(subject)
    if not others.exists():
        class_pictures(before, others, 24)
    parts = [
        {"source": {"folder": str(subject), "default": NAME}, "weight": 1.0},
        {"source": {"folder": str(others)}, "weight": 1.0},
    ]
    values = {"data.parts": parts, "data.buckets": False, "batch_size": flags.batch, "optim.steps": flags.steps}
    values |= {"optim.learning_rate": flags.rate, "optim.part_rates": {"text": flags.rate / 2}, "optim.warmup": 20}
    values |= {"objective.gamma": 5.0, "objective.floor": 1.0, "objective.dropout": 0.1}
    sets = [part for name, value in values.items() for part in ("--set", f"{name}={value!r}")]
    began = time.monotonic()
    status = command(["train", "--config", "lora", "--workdir", str(flags.workdir / "lora"), *sets])
    if status:
        raise SystemExit(status)
    print(f"{flags.steps} steps took {(time.monotonic() - began) / 60:.1f} minutes, compiling and saving included")
    after = sdjax.load(flags.workdir / "lora")
    rows = [sdjax.text_to_image(pipe, PROMPTS, seed=0, num_steps=25) for pipe in (before, after)]
    drawn = [np.asarray(Image.open(subject / f"{colour}.png")) for colour in SHOWN]
    (FOLDER.parent / "sheets" / "training-lora.png").write_bytes(place([drawn, *rows]))


if __name__ == "__main__":
    main()
