"""Makes the figures and pictures of docs/few-steps.md: the built-in model distilled into models of few steps.

    python docs/make_few_steps.py --workdir runs/few-steps [--students lcm lcm-lora pcm-lora]

Draws emoji with captions (which needs NotoColorEmoji.ttf, docs/built-in-model.md), caches their latents, runs `sdjax
train --config distill` for each student, which continues a stopped run, and counts how often the pictures of held-out
pairs show what the prompt says. Writes benchmarks/results/few_steps.json, in which models that are not measured now
keep their rows, and docs/sheets/few-steps.png: above the model with 25 steps and with 4, then the fully trained student
with 4, 2 and 1. `--students lcm-lora pcm-lora` writes docs/sheets/few-steps-lora.png instead: each LoRA with 4 steps.
"""

import argparse
import json
import pathlib
from typing import Any, NamedTuple

import numpy as np
from make_pictures import of_64_colours
from PIL import Image

import sdjax
from sdjax.scripts.main import main as command
from sdjax.train.builtin import emoji, evaluate
from sdjax.train.builtin.evaluate import Reader

ROOT = pathlib.Path(__file__).parent.parent
FIGURES = ROOT / "benchmarks/results/few_steps.json"
PICTURES, SEED = 6144, 7
SETTINGS = {
    "batch_size": 32, "optim.learning_rate": 3e-4, "optim.steps": 900, "optim.decay": "cosine",
    "objective.scales": (3.0, 5.0), "log.tensorboard": False, "model.path": "builtin",
}  # fmt: skip
LORA = {"trainable": {"kind": "lora", "rank": 32, "alpha": 32.0}, "optim.learning_rate": 2e-3, "optim.steps": 600}
SHOWN = 6  # prompts of the picture


class Student(NamedTuple):
    """What is trained otherwise than `SETTINGS` say, and the sampler and numbers of steps that are measured."""

    settings: dict[str, Any]
    sampler: str
    steps: tuple[int, ...]


STUDENTS = {
    "lcm": Student({}, "lcm", (8, 4, 2, 1)),
    "lcm-lora": Student(LORA, "lcm", (8, 4, 2)),
    "pcm-lora": Student({**LORA, "objective.phases": 4}, "ddim", (4,)),
}


def draw(folder: pathlib.Path, sprites: emoji.Sprites) -> None:
    """Writes pictures of trained pairs with their captions."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, scene in enumerate(emoji.scenes(SEED, 0, PICTURES)):
        Image.fromarray(sprites.draw(scene)).save(folder / f"{i:05}.png")
        (folder / f"{i:05}.txt").write_text(scene.caption)


def run(*words: object) -> None:
    """Runs a command of sdjax, and stops if it fails."""
    if status := command([str(word) for word in words]):
        raise SystemExit(status)


def main() -> None:
    """Makes the data, trains, measures, and writes the figures and pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="where data and checkpoints go")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--students", nargs="+", choices=STUDENTS, default=["lcm"])
    args = parser.parse_args()
    sprites = emoji.Sprites.render(64)
    if not (args.workdir / "cache").exists():
        draw(args.workdir / "pictures", sprites)
        run("cache-latents", args.workdir / "cache", "--folder", args.workdir / "pictures")
    whole = args.students == ["lcm"]
    ways: list[tuple[str, str, int, float | None]] = []
    models = {}
    if whole:
        models["before"] = sdjax.load()
        ways += [("before", "ddim", n, None) for n in (25, 8, 4, 2)]
    for name in args.students:
        student, folder = STUDENTS[name], args.workdir / name
        settings = {**SETTINGS, **student.settings}
        sets = [word for name, value in settings.items() for word in ("--set", f"{name}={value!r}")]
        run("train", "--config", "distill", "--workdir", folder, "--data", args.workdir / "cache", *sets)
        models[name] = sdjax.load(folder)
        ways += [(name, student.sampler, n, 1.0) for n in student.steps]

    reader, asked = Reader(sprites), evaluate.draw_prompts(0, args.prompts, held_out=True)
    texts, seeds = [prompt.text for prompt in asked], list(range(args.prompts))
    figures = [row for row in json.loads(FIGURES.read_text()) if row["model"] not in models]
    shown = {}
    for name, sampler, steps, scale in ways:
        make = evaluate.make_pictures(models[name], sampler=sampler)
        made = make(texts, seeds, steps, scale)
        readings = evaluate.read(reader, made, asked)
        right = sum(evaluate.is_right(reading, prompt) for reading, prompt in zip(readings, asked))
        row = {"model": name, "sampler": sampler, "steps": steps, **evaluate.share(right, len(asked))}
        print(json.dumps(row), flush=True)
        figures.append(row)
        shown[name, steps] = made[:SHOWN]
    FIGURES.write_text(json.dumps(figures, indent=1) + "\n")
    keys = [("before", 25), ("before", 4), ("lcm", 4), ("lcm", 2), ("lcm", 1)]
    rows = [shown[key] for key in (keys if whole else [(name, 4) for name in args.students])]
    plate = np.concatenate([np.concatenate(list(row), axis=1) for row in rows], axis=0)
    name = "few-steps" if whole else "few-steps-lora"
    (ROOT / f"docs/sheets/{name}.png").write_bytes(of_64_colours(Image.fromarray(plate)))


if __name__ == "__main__":
    main()
