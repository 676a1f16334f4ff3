"""The cost of adapters that are not merged, as a share of a step of Stable Diffusion 1's UNet at full width.

    python benchmarks/adapters.py --size 512 --pairs 9 --out benchmarks/results/adapters_cpu.json

A step is one call of the UNet for both branches of guidance. Steps with and without the adapter alternate, so that both
meet the same load of the computer, and the median of the pairs' ratios counts. The adapter has rank 16 on all
projections of all attention layers. It is kept once for the batch ("shared"), or once for each picture ("own"), as for
pictures with different adapters. Needs 5 GB of memory in float32 at 256 x 256.
"""

import argparse
import json
import pathlib
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

import sdjax
from sdjax import configs
from sdjax.adapters import LoRA, LowRank, for_images, share_by_images
from sdjax.config import ModelConfig
from sdjax.convert.names import tables
from sdjax.diffusion.conditioning import Conditioning, stack
from sdjax.diffusion.network import UNetNetwork
from sdjax.evaluate.benchmark import device_name

PROJECTIONS = ("to_q/kernel", "to_k/kernel", "to_v/kernel", "to_out_0/kernel")
LENGTH = 77  # tokens of a prompt
RANK = 16
FACTOR = 8  # of the autoencoder

Step = Callable[[], jax.Array]


def steps(config: ModelConfig, size: int, pictures: int, dtype: str) -> dict[str, Step]:
    """Returns a step without an adapter, and with one in each way. All are compiled."""
    rng = np.random.default_rng(0)
    leaves = {
        leaf.path.partition("/")[2]: leaf.shape for leaf in tables.part_parameters("unet", config.unet)
    }  # fmt: skip
    params = unflatten_dict(
        {path: jnp.asarray(_random(rng, shape), dtype) for path, shape in leaves.items()}, sep="/"
    )  # fmt: skip
    shapes = {path: shape for path, shape in leaves.items() if path.endswith(PROJECTIONS)}
    adapter = {
        path: LowRank(_random(rng, (shape[0], RANK)), _random(rng, (RANK, shape[1]))) for path, shape in shapes.items()
    }
    side = size // FACTOR
    x = jnp.asarray(rng.normal(size=(2 * pictures, side, side, config.unet.in_channels)), "float32")
    t = jnp.full(2 * pictures, 500.0)
    context = jnp.asarray(rng.normal(size=(pictures, LENGTH, config.unet.context_dim)), "float32")
    shared, factors = share_by_images([adapter], [[0.8]] * pictures)
    ways = {
        "without": ((), (), ()),
        "shared": ((LoRA(),), (shared,), (factors,)),
        "own": ((LoRA(),), (None,), (for_images([(adapter, 0.8)] * pictures),)),
    }
    made: dict[str, Step] = {}
    for name, (patches, of_all, own) in ways.items():
        network = UNetNetwork(config.unet, dtype, patches)
        whole = {"unet": params, "patches": jax.tree.map(jnp.asarray, of_all)} if patches else params
        branches = stack([Conditioning(context, patches=jax.tree.map(jnp.asarray, own))] * 2)
        run = jax.jit(lambda params, x, branches, network=network: network(params, x, t, branches, ())[0])
        made[name] = lambda run=run, whole=whole, branches=branches: jax.block_until_ready(run(whole, x, branches))
        made[name]()
        print(f"compiled {name}", flush=True)
    return made


def _random(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal(shape, np.float32) / np.float32(np.sqrt(np.prod(shape[:-1])))


def ratios(one: Step, other: Step, pairs: int) -> list[float]:
    """Returns how many times as long `one` takes as `other`, for each pair. The first of a pair alternates.

    On CPUs it counts the seconds of this process on all cores: other programs of the computer then matter less.
    """
    clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
    out = []
    for k in range(pairs):
        seconds = {}
        for step in (one, other) if k % 2 else (other, one):
            start = clock()
            step()
            seconds[step] = clock() - start
        out.append(seconds[one] / seconds[other])
    return out


def main() -> None:
    """Prints the ratios, and writes them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="sd1", help="a name of sdjax.configs, or builtin; default: %(default)s")
    parser.add_argument("--size", type=int, default=512, help="side of the pictures in pixels; default: %(default)s")
    parser.add_argument("--pictures", type=int, default=1, metavar="N", help="in a batch; default: %(default)s")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    config = sdjax.load("builtin").config if args.model == "builtin" else configs.get(args.model)
    made = steps(config, args.size, args.pictures, args.dtype)
    rows = {}
    for way in "shared", "own":
        found = ratios(made[way], made["without"], args.pairs)
        rows[way] = {"median": round(statistics.median(found), 4), "ratios": [round(one, 4) for one in found]}
        print(f"{way}: {rows[way]['median']} of the time without, {args.pairs} pairs", flush=True)
    if args.out:
        about = {"device": device_name(jax.devices()[0]), "jax": jax.__version__, "rank": RANK}
        options = {name: getattr(args, name) for name in ("model", "size", "pictures", "dtype")}
        args.out.write_text(json.dumps({**about, **options, **rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
