"""MLPerf's run of Stable Diffusion 2 at toy size, from tar shards of latents to its log, on any computer.

    pip install '.[mlperf]'
    python benchmarks/mlperf_toy.py toy

The built-in model draws pictures, and its autoencoder gives their moments, which become tar shards as MLCommons
distributes them. Then `sdjax train --config mlperf_sd2` trains a UNet from random weights on them, judged by the
Fréchet distance of latents to the drawn pictures, until a distance that a few hundred steps reach. Everything lies in
the folder, and `toy/run/mlperf.log` is MLPerf's log.
"""

import argparse
import io
import pathlib
import sys
import tarfile

import jax.numpy as jnp
import numpy as np
from PIL import Image

import sdjax
from sdjax.nn.vae import autoencoder
from sdjax.pictures.image import to_float
from sdjax.scripts.main import main as command

SUBJECTS = ("cat", "rocket", "penguin", "bus", "strawberry", "octopus", "sunflower", "umbrella")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "pink")
CAPTIONS = [f"a {subject} on a {colour} background" for subject in SUBJECTS for colour in COLOURS]
SHARDS = 4


def write_data(root: pathlib.Path, each: int) -> None:
    """Writes `each` pictures of every caption, their moments in tar shards, and the captions."""
    pipe = sdjax.load()
    (root / "pictures").mkdir(parents=True, exist_ok=True)
    files: list[dict[str, bytes]] = [{} for _ in range(SHARDS)]
    encode = autoencoder(pipe.config.vae, jnp.float32).bind({"params": pipe.params["vae"]}).encode
    number = 0
    for seed in range(each):
        for start in range(0, len(CAPTIONS), 16):
            captions = CAPTIONS[start : start + 16]
            made = np.asarray(sdjax.text_to_image(pipe, captions, seed=seed, num_steps=10))
            moments = np.moveaxis(np.asarray(encode(to_float(jnp.asarray(made)))), -1, 1).astype(np.float16)
            for caption, pixels, moment in zip(captions, made, moments):
                Image.fromarray(pixels).save(root / "pictures" / f"{number:09d}.png")
                array = io.BytesIO()
                np.save(array, moment)
                files[number % SHARDS][f"{number:09d}.npy"] = array.getvalue()
                files[number % SHARDS][f"{number:09d}.txt"] = caption.encode()
                number += 1
    for k, shard in enumerate(files):
        with tarfile.open(root / f"{k:05d}.tar", "w") as tar:
            for name, data in shard.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    (root / "captions.txt").write_text("\n".join(CAPTIONS) + "\n")


def main() -> int:
    """Makes the data, and runs the training."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--each", type=int, default=8, help="pictures of each of 64 captions")
    parser.add_argument("--steps", type=int, default=400, help="at most")
    parser.add_argument("--target", type=float, default=80.0, help="the distance at which the run ends")
    args = parser.parse_args()
    root = args.folder.resolve()
    if not (root / "captions.txt").exists():
        write_data(root, args.each)
    settings = {
        "model.path": "builtin", "data.cached": (str(root / f"{{00000..{SHARDS - 1:05d}}}.tar"),), "batch_size": 32,
        "optim.steps": args.steps, "optim.learning_rate": 1e-3, "dtype": "float32", "log.tensorboard": False,
        "mlperf.every": 100 * 32, "mlperf.targets": {"fd-autoencoder": args.target},
        "validation.metrics.measures": ("fd-autoencoder",), "validation.metrics.files": {},
        "validation.metrics.captions": str(root / "captions.txt"), "validation.metrics.count": 64,
        "validation.metrics.reference": str(root / "pictures"),
        "validation.metrics.settings": {"sampler": "ddim", "num_steps": 10, "guidance_scale": 4.0},
    }  # fmt: skip
    changes = [part for name, value in settings.items() for part in ("--set", f"{name}={value!r}")]
    status = command(["train", "--config", "mlperf_sd2", "--workdir", str(root / "run"), *changes])
    print((root / "run" / "mlperf.log").read_text())
    return status


if __name__ == "__main__":
    sys.exit(main())
