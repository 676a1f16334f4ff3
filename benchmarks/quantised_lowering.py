"""What quantised weights cost on a TPU, as its compiler counts it: layers of Stable Diffusion 1, compiled and not run.

    pip install libtpu        # the version that jax's extra "tpu" names; no TPU is needed
    python benchmarks/quantised_lowering.py --out benchmarks/results/quantised_v5e.json
    python benchmarks/quantised_lowering.py --table benchmarks/results/quantised_v5e.json   # for docs/quantised.md

Each layer is compiled with weights of each type, in bfloat16, for a batch of two latents of 512 x 512 pixels. `bytes`
is what XLA's cost analysis says that the program's operations read and write, copies into fast memory included, so it
is not the device memory's traffic alone. `arguments` and `temporary` are memory by `memory_analysis`. `on_chip`
and `in_memory` count the arrays of the kernel's size that the program makes in the chip's fast memory and in the
device's: both are 0 if the kernel is made inside the operation that uses it.
"""

import argparse
import json
import math
import os
import re
from pathlib import Path
from typing import Any

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # a topology that is described asks no machine about itself

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

import sdjax
from sdjax.nn.layers.conv import Conv
from sdjax.nn.layers.dense import Dense
from sdjax.nn.quantised.kinds import KINDS, WRITTEN, kind_for
from sdjax.nn.quantised.rounding import quantised

BATCH = 2
SIDES = {320: 64, 640: 32, 1280: 16}  # of the map at each width
ROWS = ("bfloat16", *WRITTEN)
ARRAY = re.compile(r"= (?:bf16|f32)\[([\d,]+)\](\S*)")


def layers(widths: list[int]) -> dict[str, tuple[Any, tuple[int, ...]]]:
    """Returns layers by name, and the shapes of their inputs: the feed-forward layer's first one, and a convolution."""
    out: dict[str, tuple[Any, tuple[int, ...]]] = {}
    for width in widths:
        side = SIDES[width]
        out[f"dense {width}"] = Dense(8 * width, dtype=jnp.bfloat16), (BATCH, side**2, width)
        out[f"conv {width}"] = Conv(width, dtype=jnp.bfloat16), (BATCH, side, side, width)
    return out


def parameters(shapes: Any, name: str) -> Any:
    """Returns the shapes of a block's parameters, with kernels of a type."""
    leaves = flatten_dict(shapes, sep="/")
    for path, leaf in leaves.items():
        kind = KINDS.get(name) if path.endswith("kernel") else None
        kind = kind_for(kind, leaf.shape[-2]) if kind else None
        leaves[path] = jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16)
        if kind is not None:
            leaves[path] = jax.eval_shape(
                lambda one: one, quantised(kind, np.zeros(leaf.shape, np.float32), "bfloat16")
            )
    return unflatten_dict(leaves, sep="/")


def made(text: str, size: int) -> list[str]:
    """Returns where a program's entry computation puts floating-point arrays of a size: "chip" or "memory" for each.

    Copies are left out: they move an argument into fast memory ahead of its use. S(1) in a layout is the fast memory.
    """
    entry = text[text.index("\nENTRY ") :]
    lines = [line for line in entry.splitlines() if not re.search(r" (parameter|bitcast|copy|copy-\w+)\(", line)]
    found = [one for line in lines if (one := ARRAY.search(line)) and math.prod(map(int, one[1].split(","))) == size]
    return ["chip" if "S(1)" in one[2] else "memory" for one in found]


def measure(net: Any, shape: tuple[int, ...], name: str, device: Any) -> dict[str, Any]:
    """Returns what the compiler counts for a layer."""
    x = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    shapes = jax.eval_shape(net.init, jax.random.key(0), x)["params"]
    args = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=SingleDeviceSharding(device)),
        (parameters(shapes, name), x),
    )
    compiled = jax.jit(lambda params, x: net.apply({"params": params}, x)).lower(*args).compile()
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    places = made(compiled.as_text(), math.prod(shapes["kernel"].shape))
    return {
        "type": name, "bytes": cost["bytes accessed"], "flops": cost["flops"],
        "arguments": memory.argument_size_in_bytes, "temporary": memory.temp_size_in_bytes,
        "on_chip": places.count("chip"), "in_memory": places.count("memory"),
    }  # fmt: skip


def table(results: dict[str, Any]) -> str:
    """Returns the rows as Markdown: each layer's arguments as a share of bfloat16's, and the kernels made."""
    names = list(dict.fromkeys(row["layer"] for row in results["rows"]))
    rows = {(row["type"], row["layer"]): row for row in results["rows"]}
    lines = [f"| type | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for name in dict.fromkeys(row["type"] for row in results["rows"]):
        pairs = [(rows[name, layer], rows["bfloat16", layer]) for layer in names if (name, layer) in rows]
        cells = [
            f"{row['arguments'] / plain['arguments']:.2f}, {row['on_chip']}, {row['in_memory']}" for row, plain in pairs
        ]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="v5e:2x2", help="of jax.experimental.topologies")
    parser.add_argument("--types", nargs="+", choices=WRITTEN, default=WRITTEN)
    parser.add_argument("--widths", nargs="+", type=int, choices=SIDES, default=list(SIDES))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/quantised_v5e.json"))
    parser.add_argument("--table", type=Path, metavar="FILE", help="print the table of finished results instead")
    args = parser.parse_args()
    if args.table is not None:
        print(table(json.loads(args.table.read_text())))
        return
    device = topologies.get_topology_desc(args.topology, platform="tpu").devices[0]
    results: dict[str, Any] = {
        "topology": args.topology, "device": device.device_kind, "batch": BATCH, "rows": [],
        "versions": {"sdjax": sdjax.__version__, "jax": jax.__version__},
    }  # fmt: skip
    for layer, (net, shape) in layers(args.widths).items():
        for name in ("bfloat16", *args.types):
            results["rows"].append({"layer": layer, **measure(net, shape, name, device)})
            print(results["rows"][-1], flush=True)
            args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
