"""Makes the pictures of the README and the manual with the built-in model, from fixed prompts and seeds.

    python docs/make_pictures.py

The grid is a selection: of 30 prompts tried with seeds 0 to 3, the twelve prompts, each with the seed, that look best.

Writes docs/images, which lies in the repository; together they stay under 300 kB. Run it again when the built-in
model or a sampler changes. On the same processor with the same JAX it writes the same bytes.
"""

import argparse
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

import sdjax
from sdjax.pictures import movie

FOLDER = Path(__file__).parent / "images"
MAX_BYTES = 300_000
GAP = 2  # white pixels between pictures
SCALE = 2  # of what is shown larger than it is
STEPS = 50

GRID = {  # prompt -> seed
    "a rocket on a green background": 1, "a cat on a blue background": 0, "a strawberry on a white background": 0,
    "a frog on a pink background": 1, "a big rainbow on a black background": 0, "a penguin on an orange background": 0,
    "a watermelon on a yellow background": 0, "a hamburger on a purple background": 0, "a fox and a mushroom": 2,
    "a sunflower on a blue background": 0, "a panda on a green background": 1, "a mushroom on a blue background": 0,
}  # fmt: skip
CAT = "a cat on a blue background"
STRAWBERRY = "a strawberry on a white background"  # an even texture: faces are doubled at twice the trained size


def place(rows: Sequence[Sequence[np.ndarray]], scale: int = 1) -> bytes:
    """Returns rows of pictures, uint8 [h, w, 3], as one PNG: enlarged `scale` times, centred in cells on white."""
    rows = [[picture.repeat(scale, axis=0).repeat(scale, axis=1) for picture in row] for row in rows]
    height = max(picture.shape[0] for row in rows for picture in row) + GAP
    width = max(picture.shape[1] for row in rows for picture in row) + GAP
    sheet = np.full((height * len(rows) - GAP, width * max(map(len, rows)) - GAP, 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            h, w, _ = picture.shape
            top, left = i * height + (height - GAP - h) // 2, j * width + (width - GAP - w) // 2
            sheet[top : top + h, left : left + w] = picture
    return png(Image.fromarray(sheet))


def png(image: Image.Image) -> bytes:
    """Returns the picture as a small PNG file."""
    data = io.BytesIO()
    image.save(data, "PNG", optimize=True)
    return data.getvalue()


def of_64_colours(image: Image.Image) -> bytes:
    """Returns the picture as a PNG file of 64 colours."""
    return png(image.quantize(64, dither=Image.Dither.NONE))


def grid(pipe: sdjax.Pipeline) -> bytes:
    """Returns a picture of each prompt of GRID, with its seed."""
    made = sdjax.text_to_image(pipe, list(GRID), seed=list(GRID.values()), num_steps=STEPS)
    return place([made[:6], made[6:]], SCALE)


def image_to_image(pipe: sdjax.Pipeline) -> bytes:
    """Returns a picture, and what rising strengths make of it with another prompt."""
    first = sdjax.text_to_image(pipe, CAT, seed=0, num_steps=STEPS)[0]
    strengths = (0.25, 0.5, 0.75, 1.0)
    made = [
        sdjax.image_to_image(pipe, first, "a fox on a blue background", strength=s, seed=1, num_steps=STEPS)[0]
        for s in strengths
    ]
    return place([[first, *made]])


def inpaint(pipe: sdjax.Pipeline) -> bytes:
    """Returns a picture, a mask, two seeds' ways to fill it by blending, and two by the model made for it."""
    first = sdjax.text_to_image(pipe, "a cat and a rocket on a green background", seed=0, num_steps=STEPS)[0]
    mask = np.zeros(first.shape[:2], bool)
    mask[:, 32:] = True
    prompt = "a cat and a red apple on a green background"
    made = [
        picture
        for model in (pipe, sdjax.load("builtin-inpainting"))
        for picture in sdjax.inpaint(model, first, mask, prompt, seed=range(2), num_images=2, num_steps=STEPS)
    ]
    return place([[first, np.repeat(np.uint8(255 * mask)[..., None], 3, axis=-1), *made]])


def outpaint(pipe: sdjax.Pipeline) -> bytes:
    """Returns a picture, and its continuation to the right."""
    first = sdjax.text_to_image(pipe, "a hamburger on a purple background", seed=0, num_steps=STEPS)[0]
    prompt = "a hamburger and a mushroom on a purple background"
    made = sdjax.outpaint(pipe, first, prompt, expand=(0, 0, 64, 0), seed=1, num_steps=STEPS)[0]
    return place([[first, made]], SCALE)


def two_pass(pipe: sdjax.Pipeline) -> bytes:
    """Returns a picture of 64 x 64 pixels, and one of 128 x 128 made in two passes from the same seed."""
    small = sdjax.text_to_image(pipe, STRAWBERRY, seed=0, num_steps=STEPS)[0]
    return place([[small, sdjax.two_pass(pipe, STRAWBERRY, seed=0, num_steps=STEPS)[0]]])


def animation(pipe: sdjax.Pipeline) -> bytes:
    """Returns a GIF that goes from one prompt and seed to another, and back."""
    prompts = ["a red apple on a yellow background", "a fox on a blue background"]
    frames = sdjax.animate(pipe, prompts, seeds=[0, 1], frames=16, loop=True, num_steps=STEPS)
    return movie.encode(frames, "gif", fps=8)


PICTURES: dict[str, Callable[[sdjax.Pipeline], bytes]] = {
    "grid.png": grid,
    "image_to_image.png": image_to_image,
    "inpaint.png": inpaint,
    "outpaint.png": outpaint,
    "two_pass.png": two_pass,
    "animation.gif": animation,
}


def make(pipe: sdjax.Pipeline, folder: Path, names: Sequence[str]) -> int:
    """Writes the pictures of these names and returns the bytes of all in the folder.

    Raises ValueError, and writes nothing, if they came to more than MAX_BYTES.
    """
    made = {name: PICTURES[name](pipe) for name in names}
    others = sum(path.stat().st_size for path in folder.glob("*") if path.name not in made)
    total = others + sum(map(len, made.values()))
    if total > MAX_BYTES:
        raise ValueError(f"the pictures would take {total} bytes; {MAX_BYTES} are wanted at most")
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in made.items():
        (folder / name).write_bytes(data)
    return total


def main() -> None:
    """Makes the pictures named on the command line, all of them by default."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(PICTURES)}; default: all")
    parser.add_argument("--model", metavar="PATH", help="instead of the built-in one, not of its inpainting model")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where to write (default: %(default)s)")
    flags = parser.parse_args()
    if unknown := set(flags.names) - set(PICTURES):
        parser.error(f"there is no picture {', '.join(sorted(unknown))}; there are {', '.join(PICTURES)}")
    total = make(sdjax.load(flags.model), flags.folder, flags.names or list(PICTURES))
    print(f"{flags.folder} holds {total / 1000:.0f} kB of pictures")


if __name__ == "__main__":
    main()
