"""Compiles the training step of Stable Diffusion 2 for many devices, and counts its collectives and its memory.

    pip install '.[train]' libtpu
    python benchmarks/collectives.py --out benchmarks/results/collectives.json --tpu v5p:2x2x2 v5p:4x4x4 v5p:8x8x8
    python benchmarks/collectives.py --out benchmarks/results/collectives.json --cpu 8 64 1024
    python benchmarks/collectives.py --out benchmarks/results/collectives.json --partitioned --each 1 --fsdp 8 --cpu 8

No accelerator is needed: `--tpu` compiles for described topologies by libtpu's compiler, `--cpu` for CPUs that XLA
pretends to have, each in a process of its own. Nothing is allocated and nothing runs. `--tiny` takes a network of
thousands of parameters, to see that the script works. `--partitioned` stops after XLA's partitioner, which places the
collectives; later passes may join them. Results are added to those in OUT.
"""

import argparse
import collections
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable


def measure(args: argparse.Namespace, where: str) -> dict:
    """Returns the collectives and the planned memory of the step for one topology or number of CPUs."""
    import jax
    from jax.experimental import topologies

    from sdjax import configs
    from sdjax.configs import finetune
    from sdjax.description import build
    from sdjax.pipeline.collectives import collectives, totals
    from sdjax.train.build import Setup
    from sdjax.train.config import TrainConfig
    from sdjax.train.parallel import training_mesh
    from sdjax.train.planning.compiling import compile_for

    tpu = ":" in where
    devices = list(topologies.get_topology_desc(where, platform="tpu").devices) if tpu else jax.devices()
    model = configs.get("sd2_base").to_dict()
    model["unet"]["norm_groups"] = 16
    model["schedule"]["prediction"] = "v"
    if args.tiny:
        model["image_size"] = 64
        model["unet"] |= {"channels": (32, 32, 32, 32), "heads": (2, 2, 2, 0), "mid_heads": 2}
        model["text"] |= {"layers": 1}
    config = finetune.get_config().to_dict()
    config["model"] |= {"path": None, "scratch": model}
    config["data"] |= {"parts": (), "cached": ("latents.tar",)}
    config["ema"] = {"decay": None}
    config["optim"] |= {"clip": None}
    config |= {"batch_size": args.each * len(devices), "dtype": "bfloat16", "remat": args.remat}
    if args.fsdp:
        config["parallel"] |= {"data": -1, "fsdp": args.fsdp}
    setup = Setup(build(TrainConfig, config), configs.ModelConfig.from_dict(model))
    begin = time.monotonic()
    mesh = training_mesh(setup.config.parallel, devices)
    memory: dict[str, int] = {}
    if args.partitioned:
        program = partitioned(lambda: compile_for(setup, mesh))
    else:
        compiled = compile_for(setup, mesh)
        program, plan = compiled.as_text(), compiled.memory_analysis()
        memory = {"arguments": plan.argument_size_in_bytes, "scratch": plan.temp_size_in_bytes}
    seconds = time.monotonic() - begin
    found = collectives(program, len(devices))
    numbers = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(setup.shapes[0].params))
    return {
        "devices": len(devices), "kind": devices[0].device_kind, "fsdp": args.fsdp or 1, "remat": args.remat,
        "batch_size": setup.config.batch_size, "parameters": numbers,
        "stage": "partitioned" if args.partitioned else "compiled",
        "bytes_each_device": {kind: total.size for kind, total in totals(found).items()},
        "operations": dict(collections.Counter(one.kind for one in found)),
        "largest": sorted(((one.size, one.kind) for one in found), reverse=True)[:5],
        **memory, "compile_seconds": round(seconds), "jax": jax.__version__,
    }  # fmt: skip


def partitioned(compile_it: Callable[[], object]) -> str:
    """Returns the program that XLA's partitioner wrote into the folder DUMPED, and does not wait for what follows."""
    folder = pathlib.Path(os.environ["DUMPED"])
    compiling = threading.Thread(target=compile_it, daemon=True)
    compiling.start()
    size = -1
    found: pathlib.Path | None = None
    while found is None or size != (size := found.stat().st_size):
        if found is None and not compiling.is_alive():
            raise RuntimeError("the compiler ended without a partitioned program")
        time.sleep(5)
        found = next((one for one in folder.glob("*.after_spmd-partitioning*.txt") if "lambda" not in one.name), None)
    return found.read_text()


def main() -> None:
    """Measures each in a process of its own, prints and adds to OUT."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--cpu", nargs="*", default=[], metavar="N", help="numbers of pretended CPUs")
    parser.add_argument("--tpu", nargs="*", default=[], metavar="KIND:AxBxC", help="topologies, such as v5p:2x2x2")
    parser.add_argument("--fsdp", type=int, default=0, help="devices that parameters are split over")
    parser.add_argument("--remat", default="none")
    parser.add_argument("--each", type=int, default=4, help="latents on each device (default: 4)")
    parser.add_argument("--partitioned", action="store_true", help="stop after XLA's partitioner: sooner, for --cpu")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # in a child
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args, args.one)), flush=True)
        os._exit(0)  # a compiler may still be at work
    results = json.loads(args.out.read_text()) if args.out.exists() else []
    for where in [*args.cpu, *args.tpu]:
        with tempfile.TemporaryDirectory() as dumped:
            done = subprocess.run(
                [sys.executable, __file__, *sys.argv[1:], "--one", where], env=environment(args, where, dumped),
                stdout=subprocess.PIPE, text=True, check=True,
            )  # fmt: skip
        found = json.loads(done.stdout.splitlines()[-1])
        print(json.dumps(found, indent=1), flush=True)
        results.append(found)
        args.out.write_text(json.dumps(results, indent=1) + "\n")


def environment(args: argparse.Namespace, where: str, dumped: str) -> dict[str, str]:
    """Returns the environment of a child, which writes the partitioned program into the folder `dumped`."""
    flags = "" if ":" in where else f"--xla_force_host_platform_device_count={where} --xla_backend_optimization_level=0"
    if args.partitioned:
        flags += f" --xla_dump_to={dumped} --xla_dump_hlo_as_text --xla_dump_hlo_pass_re=spmd-partitioning"
    return {
        **os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "DUMPED": dumped, "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }  # fmt: skip


if __name__ == "__main__":
    main()
