"""Whether TPUs compute while they exchange numbers in a training step, and of which type the numbers are.

    pip install '.[train]' libtpu
    python benchmarks/overlap.py --out benchmarks/results/overlap.json
    python benchmarks/overlap.py --out benchmarks/results/overlap.json --fsdp 8 --accumulate 2
    python benchmarks/overlap.py --out benchmarks/results/overlap.json \\
        --options xla_tpu_enable_async_collective_fusion_fuse_all_reduce

Compiles the step of a small UNet in bfloat16 for a described topology, by libtpu's compiler, and reads its schedule.
No TPU is needed and nothing runs. An exchange is asynchronous if it starts and ends in different instructions;
`hidden` are those with computation between. What is in a loop over the parts of a batch counts once. Rows are added
to those in OUT.
"""

import argparse
import collections
import json
import math
import os
import pathlib
import re
import time

os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}

import jax
from jax.experimental import topologies

from sdjax import configs
from sdjax.configs import finetune
from sdjax.description import build
from sdjax.train import parallel
from sdjax.train.build import Setup
from sdjax.train.config import TrainConfig
from sdjax.train.planning.compiling import compile_for

COMPUTATION = re.compile(r"\n(?=(?:ENTRY )?%?[\w.\-]+ \(.*\) -> .* \{\n)")
OPERATION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (?:\(.*?\)|\S+) ([a-z][\w\-]*)\(")
WORK = {"fusion", "convolution", "custom-call", "dot"}
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
RESULT = re.compile(rf"= ((?:\(.*?\)|\S+)) ({'|'.join(KINDS)})(?:-start)?\(.*channel_id=(\d+)")
NUMBERS = re.compile(r"\b(bf16|f32)\[([\d,]*)\]")


def schedule(program: str) -> dict[str, int]:
    """Returns how many exchanges of a program's text are synchronous, asynchronous, and hidden behind computation."""
    found = collections.Counter[str]()
    called = set(re.findall(r"calls=%?([\w.\-]+)", program))  # fusions, and what an asynchronous exchange consists of
    for block in COMPUTATION.split(program):
        if block.split(" (", 1)[0].removeprefix("ENTRY ").lstrip("%") in called:
            continue
        lines = [(match[1], match[2], line) for line in block.splitlines() if (match := OPERATION.match(line))]
        used = [set(re.findall(r"%([\w.\-]+)", line.split("=", 1)[1])) for _, _, line in lines]
        for i, (name, opcode, _) in enumerate(lines):
            if opcode in KINDS:
                found[f"synchronous {opcode}"] += 1
            elif name.startswith("async-collective-start") or opcode in {f"{kind}-start" for kind in KINDS}:
                found["asynchronous"] += 1
                between = _until_done(lines, used, i)
                found["hidden"] += any(lines[j][1] in WORK and "async-collective" not in lines[j][0] for j in between)
    return dict(found)


def _until_done(lines: list[tuple[str, str, str]], used: list[set[str]], start: int) -> range:
    """Returns the instructions between an exchange's start and its end. Fusions in which it goes on pass it along."""
    carried = {lines[start][0]}
    for j in range(start + 1, len(lines)):
        if not used[j] & carried:
            continue
        name, opcode, _ = lines[j]
        if "done" in name:
            return range(start + 1, j)
        if opcode == "get-tuple-element" or (opcode == "fusion" and len(used[j] & carried) >= 5):
            carried.add(name)
    raise ValueError(f"{lines[start][0]} has no end")


def types(program: str) -> dict[str, int]:
    """Returns the bytes of the exchanges' results by kind and type. An exchange's parts in several fusions are one."""
    sizes: dict[tuple[str, str], int] = {}
    for result, kind, channel in RESULT.findall(program):
        found = collections.Counter[str]()
        for name, sides in NUMBERS.findall(result):
            found[name] += math.prod(int(side) for side in sides.split(",") if side) * (2 if name == "bf16" else 4)
        for name, size in found.items():
            key = f"{kind} {name}", channel
            sizes[key] = max(size, sizes.get(key, 0))
    total = collections.Counter[str]()
    for (what, _), size in sizes.items():
        total[what] += size
    return dict(total)


def main() -> None:
    """Compiles, prints and adds a row to OUT."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--topology", default="v5e:2x4", help="a name of jax.experimental.topologies")
    parser.add_argument("--fsdp", type=int, default=1, help="devices that parameters are split over")
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--side", type=int, default=64, help="pixels")
    parser.add_argument("--options", nargs="*", default=[], metavar="NAME", help="XLA's options to set to true")
    parser.add_argument("--program", type=pathlib.Path, help="also write the program's text into this file")
    args = parser.parse_args()
    devices = topologies.get_topology_desc(args.topology, platform="tpu").devices
    parallel.OVERLAP["tpu"] = tuple(args.options)
    model = configs.get("sd2_base").to_dict() | {"image_size": args.side}
    model["unet"] |= {
        "channels": (32, 64), "heads": (2, 0), "mid_heads": 2, "transformer_depth": (1, 1),
        "self_attention": (True, True), "norm_groups": 16, "num_res_blocks": 1,
    }  # fmt: skip
    config = finetune.get_config().to_dict()
    config["model"] |= {"path": None, "scratch": model}
    config["data"] |= {"parts": (), "cached": ("latents.tar",)}
    config["ema"] = {"decay": None}
    config["parallel"] |= {"data": -1, "fsdp": args.fsdp}
    config |= {"batch_size": 2 * args.accumulate * len(devices), "dtype": "bfloat16", "accumulate": args.accumulate}
    setup = Setup(build(TrainConfig, config), configs.ModelConfig.from_dict(model), text="context")
    begin = time.monotonic()
    compiled = compile_for(setup, parallel.training_mesh(setup.config.parallel, devices))
    program = compiled.as_text()
    if args.program:
        args.program.write_text(program)
    row = {
        "topology": args.topology, "fsdp": args.fsdp, "accumulate": args.accumulate, "side": args.side,
        "options": parallel.step_options(devices),
        "parameters": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(setup.shapes[0].params)),
        "exchanges": schedule(program), "bytes": types(program),
        "scratch": compiled.memory_analysis().temp_size_in_bytes,
        "compile_seconds": round(time.monotonic() - begin), "jax": jax.__version__,
    }  # fmt: skip
    print(json.dumps(row, indent=1), flush=True)
    rows = json.loads(args.out.read_text()) if args.out.exists() else []
    args.out.write_text(json.dumps([*rows, row], indent=1) + "\n")
    os._exit(0)  # libtpu waits for a device


if __name__ == "__main__":
    main()
