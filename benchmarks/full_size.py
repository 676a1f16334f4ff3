"""All of sdjax at full size: a v1 model with random weights, from a 4 GB file to a picture, with the peak memory.

    python benchmarks/full_size.py --folder /tmp/full --out benchmarks/results/full_size.json

Writes the model as a `.ckpt` (a zip as torch.save makes it, written here without torch), lets `sdjax convert` make a
`.safetensors` of it, then loads each in a process of its own, samples 2 steps at 512 x 512 and reports seconds and the
largest resident memory. Needs 9 GB of disk and, in float32, about 10 GB of memory.
"""

import argparse
import json
import pathlib
import resource
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Iterator

import jax
import numpy as np

from sdjax import configs, convert
from sdjax.evaluate.benchmark import device_name

GIB = 2**30


def fill(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns a float32 tensor of its name's own random stream, scaled to keep activations near unit variance."""
    x = np.random.Generator(np.random.Philox(key=zlib.crc32(name.encode()))).standard_normal(shape, dtype=np.float32)
    if len(shape) <= 1:
        return np.float32(0.02) * x + np.float32(name.endswith("weight"))
    return x * np.float32(0.02 if "embedding" in name else np.prod(shape[1:]) ** -0.5)


def state_pickle(shapes: dict[str, tuple[int, ...]]) -> bytes:
    """Returns the pickle of {"state_dict": {name: tensor}, "global_step": 1} as torch.save writes it."""

    def text(s: str) -> bytes:
        raw = s.encode()
        return b"X" + len(raw).to_bytes(4, "little") + raw

    def integer(i: int) -> bytes:
        return b"J" + i.to_bytes(4, "little", signed=True)

    def ints(values: Iterator[int]) -> bytes:
        return b"(" + b"".join(map(integer, values)) + b"t"

    out = [b"\x80\x02}", text("state_dict"), b"}("]
    for key, (name, shape) in enumerate(shapes.items()):
        count = int(np.prod(shape))
        strides = [int(np.prod(shape[i + 1 :])) for i in range(len(shape))]
        storage = (
            b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(str(key)) + text("cpu") + integer(count) + b"tQ"
        )
        hooks = b"ccollections\nOrderedDict\n)R"
        arguments = b"(" + storage + integer(0) + ints(shape) + ints(strides) + b"\x89" + hooks + b"t"
        out += [text(name), b"ctorch._utils\n_rebuild_tensor_v2\n", arguments, b"R"]
    out += [b"us", text("global_step"), integer(1), b"s."]
    return b"".join(out)


def write_ckpt(path: pathlib.Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Writes a `.ckpt` of `fill`'s tensors, one at a time."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        file.writestr("archive/data.pkl", state_pickle(shapes))
        for key, (name, shape) in enumerate(shapes.items()):
            file.writestr(f"archive/data/{key}", fill(name, shape).tobytes())
        file.writestr("archive/version", b"3\n")


def peak_bytes() -> int:
    """Returns the largest resident memory of this process so far; files mapped into memory count."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def picture(path: str, dtype: str) -> dict:
    """Loads the file, makes a picture and returns seconds, peak memory and the picture's mean and deviation."""
    import sdjax

    start = time.perf_counter()
    pipe = sdjax.load(path, dtype=dtype)
    loaded = time.perf_counter()
    load_peak = peak_bytes()
    image = sdjax.text_to_image(pipe, "a photograph of an astronaut riding a horse", num_steps=2, seed=42)
    done = time.perf_counter()
    return {
        "load_seconds": round(loaded - start, 1), "load_peak_gib": round(load_peak / GIB, 2),
        "picture_seconds": round(done - loaded, 1), "peak_gib": round(peak_bytes() / GIB, 2),
        "mean": round(float(image.mean()), 3), "deviation": round(float(image.std()), 3),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--picture", nargs=2, metavar=("FILE", "DTYPE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.picture:
        print(json.dumps(picture(*args.picture)))
        return
    args.folder.mkdir(parents=True, exist_ok=True)
    ckpt, tensors = args.folder / "model.ckpt", args.folder / "model.safetensors"
    if not ckpt.exists():
        write_ckpt(ckpt, convert.tensor_shapes(configs.get("sd1"), "ldm"))
    where = {"device": device_name(jax.devices()[0]), "jax": jax.__version__, "ckpt_bytes": ckpt.stat().st_size}
    rows = []

    def keep(row: dict) -> None:
        print(row, flush=True)
        rows.append(row)
        if args.out:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps({**where, "rows": rows}, indent=1) + "\n")

    if not tensors.exists():
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "sdjax.convert", str(ckpt), str(tensors)], check=True)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        seconds = round(time.perf_counter() - start, 1)
        keep({"step": "convert ckpt to safetensors", "seconds": seconds, "peak_gib": round(peak / GIB, 2)})
    for path in (ckpt, tensors):
        for dtype in args.dtypes:
            command = [sys.executable, __file__, "--folder", str(args.folder), "--picture", str(path), dtype]
            out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            keep({"step": f"picture from {path.name}", "dtype": dtype, **json.loads(out.splitlines()[-1])})


if __name__ == "__main__":
    main()
