"""Attention: sdjax's choice beside the plain version, in one process, repetitions interleaved, medians.

    python benchmarks/attention.py --out benchmarks/results/attention_cpu.json

`memory` is the compiled program's working memory as XLA plans it. XLA's CPU backend keeps the scores of a fused plain
version outside its plan, so `plain_scores` says how large they are.
"""

import argparse
import json
import pathlib
import platform
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.nn.layers.attention import attend

# name, batch (guidance doubles it), queries, keys, heads, head size
SHAPES = [
    ("v1 self 64x64", 2, 4096, 4096, 8, 40),
    ("v1 self 32x32", 2, 1024, 1024, 8, 80),
    ("v1 self 16x16", 2, 256, 256, 8, 160),
    ("v1 cross 64x64", 2, 4096, 77, 8, 40),
    ("v1 self 65x57", 2, 3705, 3705, 8, 40),
    ("v2 self 64x64", 2, 4096, 4096, 5, 64),
    ("autoencoder 64x64", 1, 4096, 4096, 1, 512),
]


def plain(q, k, v):
    """Returns softmax attention as it is usually written: the whole score matrix, softmax in float32."""
    logits = jnp.einsum("bnhd,bmhd->bhnm", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum("bhnm,bmhd->bnhd", weights, v)


def measure(name, b, n, m, h, d, dtype, repeats):
    """Returns one row: milliseconds, ratio, planned memory in bytes and the largest difference of the two outputs."""
    rng = np.random.default_rng(0)
    args = [jnp.asarray(rng.standard_normal((b, length, h, d)), dtype) for length in (n, m, m)]
    programs = {
        key: jax.jit(function).lower(*args).compile() for key, function in (("plain", plain), ("sdjax", attend))
    }
    outs = {key: np.asarray(run(*args), np.float32) for key, run in programs.items()}
    times = {key: [] for key in programs}
    for _ in range(repeats):
        for key, run in programs.items():
            start = time.perf_counter()
            run(*args).block_until_ready()
            times[key].append(time.perf_counter() - start)
    ms = {key: round(1e3 * statistics.median(values), 2) for key, values in times.items()}
    memory = {key: run.memory_analysis().temp_size_in_bytes for key, run in programs.items()}
    return {"name": name, "shape": [b, n, m, h, d], "dtype": dtype, "ms": ms,
            "speedup": round(ms["plain"] / ms["sdjax"], 2), "memory": memory, "plain_scores": 4 * b * h * n * m,
            "difference": float(np.abs(outs["plain"] - outs["sdjax"]).max())}  # fmt: skip


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
            print(f"{row['name']:18} {dtype:9} plain {row['ms']['plain']:9.1f} ms  sdjax {row['ms']['sdjax']:8.1f} ms  "
                  f"{row['speedup']:5.2f}x  {row['memory']['sdjax'] / 2**20:6.1f} MiB", flush=True)  # fmt: skip
    if args.out:
        device = {"device": jax.devices()[0].device_kind, "processor": platform.processor() or platform.machine()}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({**device, "jax": jax.__version__, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
