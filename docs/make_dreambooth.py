"""Makes the picture of docs/training.md: the built-in model before and after it was taught a subject by DreamBooth.

    python docs/make_dreambooth.py --workdir runs/dreambooth

The subject, a squid, is none of those that the model was trained on; six pictures of it are drawn from the font of the
others (docs/built-in-model.md). Runs `sdjax train --config dreambooth`, which continues a stopped run, and writes
docs/images/dreambooth.png: above before, below after; four prompts with the subject, two with its class.
"""

import argparse
import pathlib

import numpy as np
from make_pictures import FOLDER, place
from PIL import Image, ImageDraw, ImageFont

import sdjax
from sdjax.scripts.main import main as command
from sdjax.train.builtin.emoji import FONT_SIZE, find_font
from sdjax.train.builtin.subjects import COLOURS

CHARACTER, NAME, CLASS = "\N{SQUID}", "a sks octopus", "an octopus"
SHOWN = ("red", "white", "yellow", "gray", "pink", "black")  # the backgrounds of the subject's pictures
PROMPTS = (
    *(f"{NAME} on a {colour} background" for colour in ("green", "blue", "purple", "turquoise")),
    *(f"{CLASS} on a {colour} background" for colour in ("green", "purple")),
)


def subject_pictures(folder: pathlib.Path) -> None:
    """Draws the subject at six sizes and places on six colours, 64 x 64 pixels."""
    glyph = Image.new("RGBA", (160, 160))
    font = ImageFont.truetype(str(find_font()), FONT_SIZE)
    ImageDraw.Draw(glyph).text((8, 8), CHARACTER, font=font, embedded_color=True)
    glyph = glyph.crop(glyph.getbbox()).convert("RGBa")
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for colour in SHOWN:
        size = int(rng.integers(36, 48))
        small = glyph.resize((size, size), Image.Resampling.LANCZOS).convert("RGBA")
        picture = Image.new("RGB", (64, 64), COLOURS[colour])
        picture.paste(small, tuple(int(rng.integers(4, 60 - size)) for _ in range(2)), small)
        picture.save(folder / f"{colour}.png")


def class_pictures(pipe: sdjax.Pipeline, folder: pathlib.Path, count: int = 48) -> None:
    """Has the model draw the subject's class, so that it stays what it is."""
    folder.mkdir(parents=True, exist_ok=True)
    colours = list(COLOURS)
    prompts = [f"{CLASS} on a {colours[i % len(colours)]} background" for i in range(count)]
    for i, picture in enumerate(sdjax.text_to_image(pipe, prompts, seed=1000, num_steps=25)):
        Image.fromarray(picture).save(folder / f"{i:03}.png")
        (folder / f"{i:03}.txt").write_text(prompts[i])


def main() -> None:
    """Makes the data, trains, and writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="where data and checkpoints go")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rate", type=float, default=2e-4)
    flags = parser.parse_args()
    before = sdjax.load()
    subject, others = flags.workdir / "subject", flags.workdir / "class"
    subject_pictures(subject)
    if not others.exists():
        class_pictures(before, others)
    parts = [
        {"source": {"folder": str(subject), "default": NAME}, "weight": 1.0},
        {"source": {"folder": str(others)}, "weight": 1.0},
    ]
    values = {"data.parts": parts, "batch_size": 16, "optim.steps": flags.steps, "optim.learning_rate": flags.rate}
    values |= {"optim.warmup": 20, "objective.gamma": 5.0, "objective.floor": 1.0, "objective.dropout": 0.1}
    sets = [part for name, value in values.items() for part in ("--set", f"{name}={value!r}")]
    status = command(["train", "--config", "dreambooth", "--workdir", str(flags.workdir / "run"), *sets])
    if status:
        raise SystemExit(status)
    after = sdjax.load(flags.workdir / "run")
    rows = [sdjax.text_to_image(pipe, PROMPTS, seed=0, num_steps=50) for pipe in (before, after)]
    drawn = [np.asarray(Image.open(subject / f"{colour}.png")) for colour in SHOWN]
    (FOLDER / "dreambooth.png").write_bytes(place([drawn, *rows]))


if __name__ == "__main__":
    main()
