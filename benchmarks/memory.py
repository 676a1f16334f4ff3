"""The memory that a picture needs, from XLA's plan. Programs are only compiled; nothing is allocated.

    python benchmarks/memory.py --out benchmarks/results/memory.json

For each dtype and size it compiles the three programs of text to image (text encoder, sampler with guidance, decoder)
at batch 1 and adds the whole model's parameters to what each needs beside its own. The plan is that of the backend it
runs on: XLA's CPU backend computes half precision through float32 copies in places where a GPU does not.
"""

import argparse
import json
import pathlib
import platform

import jax
import jax.numpy as jnp

from sdjax import configs
from sdjax.nn import param_shapes
from sdjax.pipeline import planning

GIB = 2**30
NAMES = {"text encoder": "text", "sampler": "sampler", "decoder": "decoder"}


def measure(name: str, dtype: str, side: int) -> dict:
    """Returns bytes: the model's parameters, each program's working memory, and the peak with parameters included."""
    config = configs.get(name)
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype)), param_shapes(config))
    size = {part: planning.nbytes(params[part]) for part in params}
    out = {"model": name, "dtype": dtype, "side": side, "parameters": sum(size.values())}
    for program, one in planning.lowered_programs(config, dtype, (side, side), params):
        m = one.compile().memory_analysis()
        out[NAMES[program]] = m.temp_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes
    out["peak"] = out["parameters"] + max(out["text"], out["sampler"], out["decoder"])
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["sd1"])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16", "float16"])
    parser.add_argument("--sides", nargs="+", type=int, default=[512, 768])
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    rows = []
    print(
        f"{'model':12} {'dtype':9} {'side':>5} {'params':>8} {'text':>8} {'sampler':>8} {'decoder':>8} {'peak':>8}  GiB"
    )
    for name in args.models:
        for dtype in args.dtypes:
            for side in args.sides:
                row = measure(name, dtype, side)
                rows.append(row)
                values = (row[k] / GIB for k in ("parameters", "text", "sampler", "decoder", "peak"))
                print(f"{name:12} {dtype:9} {side:5} " + " ".join(f"{v:8.2f}" for v in values), flush=True)
    if args.out:
        device = jax.devices()[0].device_kind
        about = {"device": device, "processor": platform.processor() or platform.machine(), "jax": jax.__version__}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
