"""What quantised weights cost in quality on the built-in model, and what they take in memory, as JSON and a table.

    python benchmarks/quantised.py --out benchmarks/results/quantised.json
    python benchmarks/quantised.py --table benchmarks/results/quantised.json   # the table of docs/quantised.md

All types compute in float32 but the row bfloat16, which is not quantised. Errors are relative: the root mean square of
the difference over that of the exact numbers. Pictures are those of evaluate-builtin's held-out pairs, with fewer steps
and prompts; `distance` is the mean difference from the picture of the same prompt and seed, in levels of 255. Seconds
are of one call of the UNet, in turn with one of the exact UNet; the ratio is the median of these pairs.
"""

import argparse
import dataclasses
import functools
import json
import math
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import sdjax
from sdjax import configs
from sdjax.convert.containers.lazy import LazyTensor
from sdjax.convert.containers.quantising import quantised_leaves
from sdjax.convert.names.tables import parameters
from sdjax.nn.quantised.kinds import WRITTEN
from sdjax.nn.quantised.leaf import is_quantised, whole
from sdjax.nn.unet import UNet
from sdjax.pipeline.model import Pipeline
from sdjax.train.builtin import emoji
from sdjax.train.builtin.evaluate import distance, draw_prompts, read, shares
from sdjax.train.builtin.reader import Reader

STEPS, AT_ONCE, PAIRS = 20, 16, 5
ROWS = ("no", "bfloat16", *WRITTEN)


def load(name: str) -> Pipeline:
    """Returns the built-in model with weights of a type."""
    return sdjax.load("builtin", dtype="bfloat16") if name == "bfloat16" else sdjax.load("builtin", quantise=name)


def error(got: Any, want: Any) -> float:
    """Returns the relative error of arrays."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    return float(np.sqrt(np.square(got - want).mean() / np.square(want).mean()))


def weights_error(pipe: Pipeline, exact: Pipeline) -> float:
    """Returns the relative error of the kernels of the UNet and the text encoder."""
    off = total = 0.0
    for part in "unet", "text":
        leaves = [jax.tree.leaves(one.params[part], is_leaf=is_quantised) for one in (pipe, exact)]
        for got, want in zip(*leaves, strict=True):
            want = np.asarray(want, np.float64)
            if want.ndim > 1:
                off += np.square(np.asarray(whole(got), np.float64) - want).sum()
                total += np.square(want).sum()
    return math.sqrt(off / total)


@functools.partial(jax.jit, static_argnums=0)
def call(net: UNet, params: Any, x: jax.Array, t: jax.Array, context: jax.Array) -> jax.Array:
    """Returns the UNet's output."""
    return net.apply({"params": params}, x, t, context)


def network(pipe: Pipeline) -> Callable[[], jax.Array]:
    """Returns a function that calls the UNet for two latents, and has done so once."""
    config, size = pipe.config, pipe.config.image_size // pipe.config.vae.factor
    x = jax.random.normal(jax.random.key(0), (2, size, size, config.unet.in_channels))
    context = jnp.asarray(pipe.encode_prompt(["a cat on a blue background", ""]))
    net = UNet(config.unet, jnp.dtype(pipe.dtype))
    params, t = jax.device_put(pipe.params["unet"]), jnp.full(2, 500.0)
    jax.block_until_ready(call(net, params, x, t, context))
    return lambda: jax.block_until_ready(call(net, params, x, t, context))


def ratio(one: Callable[[], Any], other: Callable[[], Any]) -> float:
    """Returns how many times as long the first function takes as the second: the median of PAIRS of calls."""
    ratios = []
    for _ in range(PAIRS):
        seconds = []
        for function in (one, other):
            start = time.perf_counter()
            function()
            seconds.append(time.perf_counter() - start)
        ratios.append(seconds[0] / seconds[1])
    return statistics.median(ratios)


def full_size(name: str) -> int:
    """Returns the bytes of Stable Diffusion 1's UNet and text encoder, in bfloat16 where they are not quantised."""
    config, total = configs.get("sd1"), 0
    leaves = {p.path: LazyTensor(p.shape, np.dtype(np.float16), lambda: np.zeros(0)) for p in parameters(config)}
    for path, leaf in quantised_leaves(leaves, "no" if name == "bfloat16" else name).items():
        if path.startswith(("unet/", "text/")):
            total += leaf.nbytes * (2 if name == "no" else 1)
    return total


def in_arrays(name: str) -> Pipeline:
    """Returns the built-in model with a type's numbers as arrays, so that one program makes the pictures of all."""
    pipe = load(name)
    return dataclasses.replace(pipe, params=jax.tree.map(whole, pipe.params, is_leaf=is_quantised))


def errors(name: str, exact: Pipeline) -> dict[str, Any]:
    """Returns a row of the table, with what needs no pictures and no clock."""
    packed, pipe = load(name), in_arrays(name)
    texts = [prompt.text for prompt in draw_prompts(0, AT_ONCE, held_out=True)]
    return {
        "type": name,
        "bytes": sum(leaf.nbytes for part in ("unet", "text") for leaf in jax.tree.leaves(packed.params[part])),
        "bytes_of_sd1": full_size(name),
        "weights": weights_error(pipe, exact),
        "text": error(pipe.encode_prompt(texts), exact.encode_prompt(texts)),
        "unet": error(network(pipe)(), network(exact)()),
        **dict.fromkeys(("distance", "subjects", "backgrounds", "time")),
    }


def pictures_of(name: str, count: int) -> np.ndarray:
    """Returns pictures of held-out pairs."""
    pipe, texts = in_arrays(name), [prompt.text for prompt in draw_prompts(0, count, held_out=True)]
    return np.concatenate([
        sdjax.text_to_image(pipe, texts[i : i + AT_ONCE], seed=list(range(i, i + AT_ONCE)), num_steps=STEPS)
        for i in range(0, count, AT_ONCE)
    ])  # fmt: skip


def table(results: dict[str, Any]) -> str:
    """Returns the rows as Markdown."""
    lines = [
        "| type | GB of v1 | kernels | text encoder | UNet | pictures | subjects | backgrounds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        name = {"no": "float32", "bfloat16": "bfloat16"}.get(row["type"], f"`{row['type']}`")
        cells = [name, f"{row['bytes_of_sd1'] / 1e9:.2f}"]
        off = (row[key] for key in ("weights", "text", "unet"))
        cells += ["" if one is None else f"{100 * one:.2g} %" for one in off]
        cells.append("" if row["distance"] is None else f"{row['distance']:.2g}")
        cells += [
            f"{row[key]['right']} of {row[key]['count']}" if row[key] else "" for key in ("subjects", "backgrounds")
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=32, help="a multiple of 16")
    parser.add_argument("--types", nargs="+", choices=ROWS, default=ROWS)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/quantised.json"))
    parser.add_argument("--table", type=Path, metavar="FILE", help="print the table of finished results instead")
    args = parser.parse_args()
    if args.table is not None:
        print(table(json.loads(args.table.read_text())))
        return
    exact = load("no")
    reader = Reader(emoji.Sprites.render(exact.config.image_size, None))
    results: dict[str, Any] = {
        "prompts": args.prompts, "steps": STEPS, "device": jax.devices()[0].device_kind, "cores": os.cpu_count(),
        "versions": {"sdjax": sdjax.__version__, "jax": jax.__version__}, "rows": [],
    }  # fmt: skip
    rows, plain = results["rows"], None

    def save() -> None:
        args.out.write_text(json.dumps(results, indent=1) + "\n")
        print(table(results), flush=True)

    for name in args.types:
        rows.append(errors(name, exact))
        save()
    prompts = draw_prompts(0, args.prompts, held_out=True)
    for row in rows:
        pictures = pictures_of(row["type"], args.prompts)
        plain = pictures if plain is None else plain
        found = shares(read(reader, pictures, prompts), prompts)
        row |= {
            "distance": distance(pictures, plain), "subjects": found["subject"], "backgrounds": found["background"],
        }  # fmt: skip
        save()
    for row in rows:
        row["time"] = ratio(network(load(row["type"])), network(exact))
        save()


if __name__ == "__main__":
    main()
