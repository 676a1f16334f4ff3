"""Trains a ControlNet for the built-in model, and makes the picture of docs/training-controlnet.md.

    python docs/make_control_training.py --workdir runs/control

The pictures are those of the built-in model's training, drawn from the font (docs/built-in-model.md). Half of the hints
are edges (canny), half are outlines of the subjects. Runs `sdjax train --config controlnet`, which continues a stopped
run. The net is written as a control-LoRA, builtin-edges.safetensors, as sdjax holds it. Then 30 outlines that were not
trained on are followed with prompts of their own. Prints how well the subjects fill their outlines, and writes
docs/sheets/training-control.png: ten outlines, pictures without and with the ControlNet.
"""

import argparse
import json
import pathlib
import time

import jax
import numpy as np
from make_pictures import FOLDER, place
from PIL import Image
from scipy import ndimage

import sdjax
from sdjax import convert
from sdjax.convert.write.controlnet import write_control_lora
from sdjax.scripts.main import main as command
from sdjax.tasks.controls import ControlUse
from sdjax.train.builtin import emoji, subjects

TRAINED, TESTED = 11, 12  # seeds of scenes
GOOD = 0.7  # of the union of subject and outline that both have
RANK, TRIED, SHOWN = 12, 30, 10
STRENGTH = 1.5  # times the trained outputs, in the file: so that the weight 1 follows best (tried on other drawings)
FAR = 40  # levels, summed over the channels, from the background's colour to a subject


def drawing(picture: np.ndarray, rgb: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the filled shape of what a picture shows, bool [h, w], and its outline as a hint."""
    shape = ndimage.binary_fill_holes(np.abs(picture.astype(int) - rgb).sum(-1) > FAR)
    outline = shape & ~ndimage.binary_erosion(shape)
    return shape, np.repeat(np.uint8(255) * outline[..., None], 3, axis=-1)


def caption(scene: emoji.Scene) -> str:
    """Returns a caption that does not say where the subjects are."""
    names = [subjects.with_article(subjects.names()[i]) for i in scene.subjects]
    return f"{' and '.join(names)} on {subjects.with_article(list(subjects.COLOURS)[scene.colour])} background"


def training_pictures(folder: pathlib.Path, count: int) -> None:
    """Writes pictures, captions and hints."""
    folder.mkdir(parents=True, exist_ok=True)
    sprites, rows = emoji.Sprites.render(), []
    for i, scene in enumerate(emoji.scenes(TRAINED, 0, count)):
        picture = sprites.draw(scene)
        hint = sdjax.make_hint(picture, "canny") if i % 2 else drawing(picture, scene.rgb)[1]
        Image.fromarray(picture).save(folder / f"{i:05}.png")
        Image.fromarray(hint).save(folder / f"{i:05}_hint.png")
        rows.append({"file_name": f"{i:05}.png", "hint_file_name": f"{i:05}_hint.png", "text": caption(scene)})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def overlap(picture: np.ndarray, shape: np.ndarray) -> float:
    """Returns the share of the union of a shape and a picture's subject that both have."""
    rgb = np.median(np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]]), axis=0)
    filled, _ = drawing(picture, tuple(rgb))
    return float((filled & shape).sum() / max((filled | shape).sum(), 1))


def main() -> None:
    """Makes the data, trains, measures, and writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="where data and checkpoints go")
    parser.add_argument("--pictures", type=int, default=12000)
    parser.add_argument("--steps", type=int, default=7460)
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument("--batch", type=int, default=16)
    flags = parser.parse_args()
    data, run = flags.workdir / "pictures", flags.workdir / "run"
    if not (data / "metadata.jsonl").exists():
        training_pictures(data, flags.pictures)
    values = {"data.parts": [{"source": {"folder": str(data)}}], "data.buckets": False, "data.hints": "files"}
    values |= {"data.flip": 0.5, "batch_size": flags.batch, "optim.steps": flags.steps, "optim.warmup": 50}
    values |= {"optim.learning_rate": flags.rate, "optim.decay": "cosine", "objective.gamma": 5.0}
    values |= {"objective.dropout": 0.3, "checkpoint.minutes": 3.0}
    sets = [part for name, value in values.items() for part in ("--set", f"{name}={value!r}")]
    began = time.monotonic()
    if status := command(["train", "--config", "controlnet", "--workdir", str(run), *sets]):
        raise SystemExit(status)
    print(f"{flags.steps} steps took {(time.monotonic() - began) / 60:.1f} minutes, compiling and saving included")
    pipe, small = sdjax.load(dtype="float32"), flags.workdir / "builtin-edges.safetensors"
    net = convert.load_controlnet(run / "controlnet.safetensors", pipe.config)
    outputs = [name for name in net.params if name.startswith(("controlnet_down_blocks", "controlnet_mid_block"))]
    stronger = {name: jax.tree.map(lambda leaf: STRENGTH * leaf, net.params[name]) for name in outputs}
    write_control_lora(small, net.config, {**net.params, **stronger}, pipe.params["unet"], rank=RANK, overwrite=True)
    sprites = emoji.Sprites.render()
    scenes = [one for one in emoji.scenes(TESTED, 0, 90) if len(one.subjects) == 1][:TRIED]
    shapes, hints = zip(*(drawing(sprites.draw(one), one.rgb) for one in scenes))
    prompts = [caption(one) for one in scenes]
    before = sdjax.text_to_image(pipe, prompts, seed=0, num_steps=25)
    controls = [[ControlUse(small, hint)] for hint in hints]
    after = sdjax.text_to_image(pipe, prompts, seed=0, num_steps=25, controls=controls)
    for name, made in ("without", before), ("with", after):
        found = [overlap(picture, shape) for picture, shape in zip(made, shapes)]
        well = [one >= GOOD for one in found]
        print(name, " ".join(f"{one:.2f}" for one in found), f"median {np.median(found):.2f}")
        print(f"{sum(well)} of {TRIED} outlines are filled, {sum(well[:SHOWN])} of the {SHOWN} that are shown")
    (FOLDER.parent / "sheets" / "training-control.png").write_bytes(
        place([row[:SHOWN] for row in (hints, before, after)])
    )


if __name__ == "__main__":
    main()
