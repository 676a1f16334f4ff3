"""The time of each operation of the v1 UNet on a CPU, in float32 and bfloat16, from XLA's profile of one call.

    python benchmarks/operations.py --out benchmarks/results/operations_cpu.json

The full-size network with random weights, two latents of `--side`. Beside it one matrix product of `--size`, which says
what XLA, and PyTorch where it is installed, get out of the processor in each type.
"""

import argparse
import collections
import json
import pathlib
import re
import statistics
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from sdjax import configs
from sdjax.evaluate.benchmark import device_name, random_model
from sdjax.nn import UNet

DTYPES = ("float32", "bfloat16")
# Instructions of compiled programs by name, what fits first; XLA gives matrix products to a library, in "ynn_fusion"s
KINDS = {
    "products": r"ynn|dot|convolution",
    "conversions of type": "convert",
    "moving": "copy|transpose|pad|slice|concat",
}
AROUND = re.compile("^(while|call|conditional)")  # these hold others, which are counted themselves


def profile(pipe, dtype, side):
    """Returns the seconds of one call of the UNet, and the shares of its operations' time by kind."""
    network = UNet(pipe.config.unet, jnp.dtype(dtype))
    params = jax.tree.map(lambda a: jnp.asarray(a, dtype), pipe.params["unet"])
    rng = np.random.default_rng(0)
    x, context = rng.standard_normal((2, side, side, 4), np.float32), rng.standard_normal((2, 77, 768), np.float32)
    run = jax.jit(lambda p, *args: network.apply({"params": p}, *args))
    call = lambda: run(params, x, jnp.full(2, 500.0), context).block_until_ready()  # noqa: E731
    call()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            begin = time.perf_counter()
            call()
            seconds = time.perf_counter() - begin
        (file,) = pathlib.Path(folder).rglob("*.xplane.pb")
        spent = collections.Counter()
        for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
            for event in (event for line in plane.lines for event in line.events):
                name = dict(event.stats).get("hlo_op")
                if name is not None and not AROUND.match(name):
                    kind = next(
                        (kind for kind, pattern in KINDS.items() if re.search(pattern, name)), "element by element"
                    )
                    spent[kind] += event.duration_ns
    return seconds, {kind: round(ns / spent.total(), 3) for kind, ns in spent.most_common()}


def products(size, repeats=3):
    """Returns GFLOP/s of a product of two square matrices, by library and type."""
    a = np.random.default_rng(0).standard_normal((size, size), np.float32)
    runs = {}
    multiply = jax.jit(jnp.matmul)
    for dtype in DTYPES:
        ours = jnp.asarray(a, dtype)
        runs["XLA", dtype] = lambda ours=ours: multiply(ours, ours).block_until_ready()
    try:
        import torch

        for dtype in DTYPES:
            theirs = torch.from_numpy(a).to(getattr(torch, dtype))
            runs["PyTorch", dtype] = lambda theirs=theirs: theirs @ theirs
    except ImportError:
        pass
    times = {key: [] for key in runs}
    for _ in range(1 + repeats):
        for key, run in runs.items():
            begin = time.perf_counter()
            run()
            times[key].append(time.perf_counter() - begin)
    return {
        f"{who}, {dtype}": round(2e-9 * size**3 / statistics.median(values[1:]), 1)
        for (who, dtype), values in times.items()
    }


def main():
    """Profiles, prints the shares and writes them to a file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--side", type=int, default=64, help="of the latents")
    parser.add_argument("--size", type=int, default=1024, help="of the matrices")
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    found = {"device": device_name(jax.devices()[0]), "jax": jax.__version__, "side": args.side, "size": args.size}
    found["products, GFLOP/s"] = products(args.size)
    print(found, flush=True)
    pipe = random_model(configs.get("sd1"), "float32")
    for dtype in DTYPES:
        seconds, shares = profile(pipe, dtype, args.side)
        found[dtype] = {"seconds": round(seconds, 2), "shares": shares}
        print(dtype, found[dtype], flush=True)
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
