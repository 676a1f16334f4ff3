"""Makes the picture of docs/detail.md: small smudged subjects, and the same after `sdjax.detail`.

    python docs/make_detail.py

The built-in model draws pictures; they are shrunk to 20 x 20 pixels and put on a background. `detail` makes them again.
"""

import argparse
from pathlib import Path

import numpy as np
from make_pictures import place

import sdjax
from sdjax import pictures

FILE = Path(__file__).parent / "sheets" / "detail.png"
WHAT = {"a penguin on a blue background": (8, 30), "a strawberry on a blue background": (54, 10)}  # left, top
SMALL = 26  # pixels a side in the scene
SCENE = (64, 96)
SCALE = 3


def main() -> None:
    """Writes the picture."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    pipe = sdjax.load()
    drawn = sdjax.text_to_image(pipe, list(WHAT), seed=[0, 0], num_steps=50)
    scene = np.empty((*SCENE, 3), np.uint8)
    scene[:] = np.median(drawn[:, :4].reshape(-1, 3), axis=0)
    boxes = []
    for picture, (left, top) in zip(drawn, WHAT.values()):
        small = pictures.resize(pictures.resize(picture, SMALL // 2, SMALL // 2, "area"), SMALL, SMALL, "bilinear")
        scene = pictures.paste(scene, small, pictures.Box(left, top, left + SMALL, top + SMALL))
        boxes.append((left, top, SMALL, SMALL))
    made = scene
    for prompt, box in zip(WHAT, boxes):
        (made,) = sdjax.detail(pipe, made, prompt, boxes=[box], strength=0.7, grow=0, padding=2, seed=0)
    large = [pictures.resize(one, SCENE[0] * SCALE, SCENE[1] * SCALE, "nearest") for one in (scene, made)]
    FILE.write_bytes(place([large]))
    print(FILE, FILE.stat().st_size)


if __name__ == "__main__":
    main()
