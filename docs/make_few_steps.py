"""Makes the figures and pictures of docs/few-steps.md: the built-in model distilled into one of few steps.

    python docs/make_few_steps.py --workdir runs/few-steps

Draws emoji with captions (which needs NotoColorEmoji.ttf, docs/built-in-model.md), caches their latents, runs `sdjax
train --config distill`, which continues a stopped run, and counts how often the pictures of held-out pairs show what
the prompt says. Writes benchmarks/results/few_steps.json and docs/sheets/few-steps.png: above the model
with 25 steps and with 4, below the distilled one with 4, 2 and 1.
"""

import argparse
import json
import pathlib

import numpy as np
from make_pictures import of_64_colours
from PIL import Image

import sdjax
from sdjax.scripts.main import main as command
from sdjax.train.builtin import emoji, evaluate
from sdjax.train.builtin.evaluate import Reader

ROOT = pathlib.Path(__file__).parent.parent
PICTURES, SEED = 6144, 7
SETTINGS = {
    "batch_size": 32, "optim.learning_rate": 3e-4, "optim.steps": 900, "optim.decay": "cosine",
    "objective.scales": (3.0, 5.0), "log.tensorboard": False, "model.path": "builtin",
}  # fmt: skip
SHOWN = 6  # prompts of the picture


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
    args = parser.parse_args()
    sprites = emoji.Sprites.render(64)
    if not (args.workdir / "cache").exists():
        draw(args.workdir / "pictures", sprites)
        run("cache-latents", args.workdir / "cache", "--folder", args.workdir / "pictures")
    sets = [word for name, value in SETTINGS.items() for word in ("--set", f"{name}={value!r}")]
    run("train", "--config", "distill", "--workdir", args.workdir / "run", "--data", args.workdir / "cache", *sets)

    models = {"before": sdjax.load(), "after": sdjax.load(args.workdir / "run")}
    reader, asked = Reader(sprites), evaluate.draw_prompts(0, args.prompts, held_out=True)
    texts, seeds = [prompt.text for prompt in asked], list(range(args.prompts))
    ways = [("before", "ddim", n, None) for n in (25, 8, 4, 2)] + [("after", "lcm", n, 1.0) for n in (8, 4, 2, 1)]
    figures, shown = [], {}
    for name, sampler, steps, scale in ways:
        make = evaluate.make_pictures(models[name], sampler=sampler)
        made = make(texts, seeds, steps, scale)
        readings = evaluate.read(reader, made, asked)
        right = sum(evaluate.is_right(reading, prompt) for reading, prompt in zip(readings, asked))
        row = {"model": name, "sampler": sampler, "steps": steps, **evaluate.share(right, len(asked))}
        print(json.dumps(row), flush=True)
        figures.append(row)
        shown[name, steps] = made[:SHOWN]
    (ROOT / "benchmarks/results/few_steps.json").write_text(json.dumps(figures, indent=1) + "\n")
    rows = [shown[key] for key in (("before", 25), ("before", 4), ("after", 4), ("after", 2), ("after", 1))]
    plate = np.concatenate([np.concatenate(list(row), axis=1) for row in rows], axis=0)
    (ROOT / "docs/sheets/few-steps.png").write_bytes(of_64_colours(Image.fromarray(plate)))


if __name__ == "__main__":
    main()
