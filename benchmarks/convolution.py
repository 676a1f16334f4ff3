"""Convolution: XLA's beside one product of neighbourhoods and Winograd's products, in one process, medians.

    python benchmarks/convolution.py --out benchmarks/results/convolution_cpu.json

`chosen` is what sdjax does on a CPU for the shape; `ratio` is XLA's time over the chosen method's, `slopes` and
`slopes_ratio` are those of the gradients with respect to map and kernel, which hold one more convolution.
"""

import argparse
import functools
import json
import pathlib
import platform
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.nn.layers import conv
from sdjax.nn.layers.winograd import winograd

SAME, POINT = ((1, 1), (1, 1)), ((0, 0), (0, 0))
# name, input, kernel, stride, padding
SHAPES = [
    ("unet 64x64x320", (2, 64, 64, 320), (3, 3, 320, 320), 1, SAME),
    ("unet 32x32x640", (2, 32, 32, 640), (3, 3, 640, 640), 1, SAME),
    ("unet 16x16x1280", (2, 16, 16, 1280), (3, 3, 1280, 1280), 1, SAME),
    ("unet 8x8x1280", (2, 8, 8, 1280), (3, 3, 1280, 1280), 1, SAME),
    ("unet 8x8x2560", (2, 8, 8, 2560), (3, 3, 2560, 1280), 1, SAME),
    ("unet stride 2", (2, 64, 64, 320), (3, 3, 320, 320), 2, SAME),
    ("unet 1x1", (2, 64, 64, 640), (1, 1, 640, 320), 1, POINT),
    ("unet in", (2, 64, 64, 4), (3, 3, 4, 320), 1, SAME),
    ("unet out", (2, 64, 64, 320), (3, 3, 320, 4), 1, SAME),
    ("autoencoder 512x512x128", (1, 512, 512, 128), (3, 3, 128, 128), 1, SAME),
    ("autoencoder 256x256x256", (1, 256, 256, 256), (3, 3, 256, 256), 1, SAME),
    ("autoencoder 64x64x512", (1, 64, 64, 512), (3, 3, 512, 512), 1, SAME),
    ("built-in 8x8x96, batch 64", (64, 8, 8, 96), (3, 3, 96, 96), 1, SAME),
    ("built-in 4x4x128, batch 64", (64, 4, 4, 128), (3, 3, 128, 128), 1, SAME),
]


METHODS = {"xla": conv.convolution, "columns": conv.columns, "winograd": lambda x, kernel, **_: winograd(x, kernel)}


def timed(programs, args, repeats):
    """Returns the median milliseconds of every program, which take turns."""
    times = {key: [] for key in programs}
    for turn in range(repeats + 1):
        for key, run in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(run(*args))
            if turn:
                times[key].append(time.perf_counter() - start)
    return {key: round(1e3 * statistics.median(values), 2) for key, values in times.items()}


def measure(name, shape, window, stride, padding, dtype, repeats):
    """Returns one row: milliseconds, compile seconds and planned memory of every method, and the choice."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal(shape), dtype)
    kernel = jnp.asarray(rng.standard_normal(window) / np.prod(window[:3]) ** 0.5, dtype)
    programs, slopes, seconds = {}, {}, {}
    for key, method in METHODS.items():
        if key == "winograd" and (window[:2] != (3, 3) or stride != 1):
            continue
        start = time.perf_counter()
        run = functools.partial(method, strides=(stride, stride), padding=padding)
        programs[key] = jax.jit(run).lower(x, kernel).compile()
        seconds[key] = round(time.perf_counter() - start, 2)
        slopes[key] = jax.jit(lambda x, kernel, y, run=run: jax.vjp(run, x, kernel)[1](y))
    outs = {key: np.asarray(run(x, kernel), np.float32) for key, run in programs.items()}
    ms = timed(programs, (x, kernel), repeats)
    chosen = conv.method_on_cpu(shape, window, (stride, stride), padding, x.dtype)
    y = jnp.asarray(rng.standard_normal(outs["xla"].shape), dtype)
    slopes = timed({key: slopes[key] for key in {"xla", chosen}}, (x, kernel, y), repeats)
    return {"name": name, "input": shape, "kernel": window, "stride": stride, "dtype": dtype, "ms": ms,
            "chosen": chosen, "ratio": round(ms["xla"] / ms[chosen], 2), "compile_seconds": seconds,
            "memory": {key: run.memory_analysis().temp_size_in_bytes for key, run in programs.items()},
            "slopes": slopes, "slopes_ratio": round(slopes["xla"] / slopes[chosen], 2),
            "difference": {key: float(np.linalg.norm(out - outs["xla"]) / np.linalg.norm(outs["xla"]))
                           for key, out in outs.items()}}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    rows = []
    for dtype in args.dtypes:
        for shape in SHAPES:
            row = measure(*shape, dtype, args.repeats)
            rows.append(row)
            times = "  ".join(f"{key} {value:8.1f}" for key, value in row["ms"].items())
            print(f"{row['name']:24} {dtype:9} {times} ms  {row['chosen']} {row['ratio']:.2f}x, "
                  f"slopes {row['slopes_ratio']:.2f}x", flush=True)  # fmt: skip
    if args.out:
        device = {"device": jax.devices()[0].device_kind, "processor": platform.processor() or platform.machine()}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({**device, "jax": jax.__version__, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
