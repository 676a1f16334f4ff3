"""One step of a full-size UNet on this computer: seconds, operations, share of the peak, and where the time goes.

    python benchmarks/unet_step.py --out benchmarks/results/unet_step_cpu.json

Forward and backward pass with random weights, one latent of `--side`, in `--dtype`. There is no optimiser, and each
gradient is reduced to its norm at once: so float32 fits into 14 GB. The peak is what a product of two matrices of
`--size` reaches in the same process. The shares are from XLA's profile of one step. `load` is the number of processes
that ran or waited before the measurement (`os.getloadavg`): more than one means that the times are too long.
"""

import argparse
import collections
import json
import os
import pathlib
import re
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdjax import configs
from sdjax.config import ModelConfig
from sdjax.evaluate.benchmark import device_name
from sdjax.nn import UNet, param_shapes
from sdjax.nn.unet import REMATS
from sdjax.train.parallel import step_options
from sdjax.train.planning import flops

INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?(?P<name>[\w.\-]+) = (?:\(.*?\)|\S+) (?P<opcode>[a-z][\w\-]*)\(")
COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
CALLS = re.compile(r"calls=%?([\w.\-]+)")
WHERE = re.compile(r'op_name="([^"]*)"')
AROUND = {"while", "call", "conditional"}  # these hold others, which are counted themselves
MOVES = {
    "copy", "transpose", "pad", "slice", "concatenate", "broadcast", "reshape", "bitcast", "dynamic-slice",
    "dynamic-update-slice", "reverse", "parameter", "constant", "tuple", "get-tuple-element", "iota",
}  # fmt: skip
PRODUCTS = {"dot", "convolution", "custom-call"}
CONV_LAYER = re.compile(r"/conv(\d|_in|_out|_shortcut)?/")


class Instruction(NamedTuple):
    """An instruction of a compiled program: its kind, what its fusion holds, and the layer that it is from."""

    opcode: str
    inside: frozenset[str]
    where: str

    @property
    def kind(self) -> str:
        """The row of the table that its time belongs to."""
        if self.inside <= MOVES:
            return "copies"
        if "/attend/" in self.where:
            return "attention"
        if CONV_LAYER.search(self.where):
            return "convolutions"
        return "matrix products" if self.inside & PRODUCTS else "norms and element by element"


def instructions(program: str) -> dict[str, Instruction]:
    """Returns the instructions of a program's text (HLO) by name."""
    opcodes, lines, inside = collections.defaultdict(set), {}, ""
    for line in program.splitlines():
        if match := COMPUTATION.match(line):
            inside = match[1]
        elif match := INSTRUCTION.match(line):
            opcodes[inside].add(match["opcode"])
            lines[match["name"]] = match["opcode"], line
    found = {}
    for name, (opcode, line) in lines.items():
        called = CALLS.search(line)
        where = WHERE.search(line)
        held = opcodes[called[1]] if called and opcode == "fusion" else {opcode}
        found[name] = Instruction(opcode, frozenset(held), where[1] if where else "")
    return found


def shares(program: str, call: Callable[[], object]) -> dict[str, float]:
    """Returns the shares of the operations' time of one call by kind, the largest first."""
    known, spent = instructions(program), collections.Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            call()
        (file,) = pathlib.Path(folder).rglob("*.xplane.pb")
        for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
            for event in (event for line in plane.lines for event in line.events):
                name = dict(event.stats).get("hlo_op")
                if name is None or (name in known and known[name].opcode in AROUND):
                    continue
                spent[known[name].kind if name in known else "other"] += event.duration_ns
    return {kind: round(ns / spent.total(), 3) for kind, ns in spent.most_common()}


def peak(size: int, dtype: str, repeats: int = 5) -> float:
    """Returns the operations a second of the fastest of some products of two square matrices."""
    a = jnp.asarray(np.random.default_rng(0).standard_normal((size, size), np.float32), dtype)
    multiply = jax.jit(jnp.matmul)
    multiply(a, a).block_until_ready()
    return 2.0 * size**3 / min(seconds(lambda: multiply(a, a).block_until_ready()) for _ in range(repeats))


def seconds(call: Callable[[], object]) -> float:
    """Returns how long a call takes."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def measure(config: ModelConfig, args: argparse.Namespace) -> dict:
    """Compiles the step, runs it and returns what was found."""
    unet = UNet(config.unet, jnp.dtype(args.dtype), args.remat)
    rng = np.random.default_rng(0)

    def fill(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        width = np.prod(leaf.shape[:-1]) if len(leaf.shape) > 1 else 1
        return jnp.asarray(rng.standard_normal(leaf.shape, np.float32) / np.float32(width**0.5), args.dtype)

    def loss(params: dict, x: jax.Array, noise: jax.Array, t: jax.Array, context: jax.Array) -> tuple[jax.Array, None]:
        return jnp.square(unet.apply({"params": params}, x, t, context) - noise).mean(), None

    def step(*inputs: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        (value, _), gradients = jax.value_and_grad(loss, has_aux=True)(*inputs)
        return value, [jnp.linalg.norm(leaf.astype(jnp.float32)) for leaf in jax.tree.leaves(gradients)]

    latent, words = (1, args.side, args.side, config.unet.out_channels), (1, 77, config.unet.context_dim)
    inputs = [*(rng.standard_normal(shape, np.float32) for shape in (latent, latent)), np.full(1, 500.0, np.float32)]
    inputs.append(rng.standard_normal(words, np.float32))
    shapes = param_shapes(config)["unet"]
    operations = flops.count(loss, shapes, *inputs, remat=args.remat)
    begin = time.perf_counter()
    compiled = jax.jit(step, compiler_options=step_options(jax.devices())).lower(shapes, *inputs).compile()
    compiling, plan = time.perf_counter() - begin, compiled.memory_analysis()
    print(f"compiled in {compiling:.0f} s; scratch {plan.temp_size_in_bytes / 2**30:.1f} GiB", flush=True)
    params = jax.tree.map(fill, shapes)

    def call() -> None:
        jax.block_until_ready(compiled(params, *inputs))

    call()
    load = os.getloadavg()[0]
    times = [seconds(call) for _ in range(args.repeats)]
    best = peak(args.size, args.dtype)
    taken = statistics.median(times)
    return {
        "model": config.name, "side": args.side, "dtype": args.dtype, "remat": args.remat,
        "parameters": int(sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))),
        "seconds": round(taken, 2), "all_seconds": [round(one, 2) for one in times], "load": round(load, 2),
        "tflop": round(operations.model / 1e12, 3), "gflop_per_second": round(operations.model / taken / 1e9, 1),
        "matrix_size": args.size, "peak_gflop_per_second": round(best / 1e9, 1),
        "share_of_peak": round(operations.model / taken / best, 3),
        "shares": shares(compiled.as_text(), call),
        "compile_seconds": round(compiling), "scratch_gib": round(plan.temp_size_in_bytes / 2**30, 2),
        "resident_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }  # fmt: skip


def main() -> None:
    """Measures, prints and writes OUT."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=("sd1", "sd2_base"), default=["sd1"])
    parser.add_argument("--side", type=int, default=64, help="of the latent")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--remat", choices=tuple(REMATS), default="none")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--size", type=int, default=4096, help="of the matrices")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()
    about = {"device": device_name(jax.devices()[0]), "cores": os.cpu_count(), "jax": jax.__version__}
    rows = []
    for name in args.models:
        rows.append(measure(configs.get(name), args))
        print(json.dumps(rows[-1], indent=1), flush=True)
        args.out.write_text(json.dumps({**about, "steps": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
