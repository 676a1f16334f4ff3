"""Makes the pictures of the page on high resolution with the built-in model: one prompt each, nothing chosen.

    python docs/make_high_resolution.py

Writes docs/sheets/seamless.png, large.png and panorama.png.
"""

import argparse
from pathlib import Path

import numpy as np
from make_pictures import place

import sdjax

FOLDER = Path(__file__).parent / "sheets"
STEPS = 30
STRAWBERRY = "a strawberry on a white background"
CAT = "a cat on a blue background"


def seamless(pipe: sdjax.Pipeline) -> bytes:
    """Returns a seamless picture, and 2 x 2 copies of it beside each other."""
    options = {"seed": 0, "num_steps": STEPS, "seamless": "xy"}
    one = sdjax.text_to_image(pipe, "a watermelon on a yellow background", **options)[0]
    # Rolled, so that the subject lies over the corner, where seams would show
    one = np.roll(one, (32, 32), (0, 1))
    return place([[one, np.tile(one, (2, 2, 1))]], 2)


def large(pipe: sdjax.Pipeline) -> bytes:
    """Returns pictures of twice the trained size: plain, with deep shrink, with RAU-Net, and in two passes."""
    options = {"seed": 0, "num_steps": STEPS, "height": 128, "width": 128}
    rows = []
    for prompt in (CAT, STRAWBERRY):
        plain = sdjax.text_to_image(pipe, prompt, **options)[0]
        shrunk, rau_net = (
            sdjax.text_to_image(pipe, prompt, patches=[patch], **options)[0]
            for patch in ("deep_shrink:block=0,stop=0.5", "rau_net:stop=0.5")
        )
        rows.append([plain, shrunk, rau_net])
    return place(rows)


def panorama(pipe: sdjax.Pipeline) -> bytes:
    """Returns a wide picture at once, and in windows with both blends."""
    options = {"seed": 1, "num_steps": STEPS, "height": 64, "width": 384}
    prompt = "a mushroom on a blue background"
    at_once = sdjax.text_to_image(pipe, prompt, **options)[0]
    blended = [
        sdjax.text_to_image(pipe, prompt, window=64, window_overlap=48, window_blend=blend, **options)[0]
        for blend in ("mean", "gaussian")
    ]
    return place([[picture] for picture in (at_once, *blended)])


def main() -> None:
    """Makes and writes the sheets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=FOLDER, help="default: %(default)s")
    args = parser.parse_args()
    pipe = sdjax.load()
    for function in (seamless, large, panorama):
        data = function(pipe)
        (args.folder / f"{function.__name__}.png").write_bytes(data)
        print(f"{function.__name__}.png: {len(data)} bytes", flush=True)


if __name__ == "__main__":
    main()
