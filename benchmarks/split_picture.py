"""What devices send each other when one picture is divided over them: counted in compiled programs of full size.

    python benchmarks/split_picture.py --out benchmarks/results/split_picture_cpu.json
    python benchmarks/split_picture.py --topology v5e:2x4 --out benchmarks/results/split_picture_v5e.json

Compiles one guided step of the UNet (a batch of two branches) and the decoder, in bfloat16, for abstract parameters:
nothing is computed, and no weights are needed. Without `--topology` the programs are for this computer's processor,
taken as eight devices. A topology's name is that of `jax.experimental.topologies`; TPUs need the package libtpu, but no
TPU. For each program it writes how many exchanges of each kind there are, and the bytes that each device gets.
"""

import argparse
import json
import os
import pathlib
import time
from typing import Any

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from sdjax import configs
from sdjax.config import ModelConfig
from sdjax.nn import param_shapes
from sdjax.nn.unet import UNet
from sdjax.nn.vae import autoencoder
from sdjax.pipeline import placement
from sdjax.pipeline.collectives import collectives, totals

MODELS = ("sd1", "sd2_base", "sd2_v")
BRANCHES = 2  # of guidance


def devices_of(topology: str | None) -> list[jax.Device]:
    """Returns the devices to compile for."""
    if topology is None:
        return jax.devices("cpu")
    from jax.experimental import topologies

    return list(topologies.get_topology_desc(topology, platform="tpu").devices)


def programs(config: ModelConfig, mesh: jax.sharding.Mesh) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """Returns the functions to compile, and the shapes of their arguments."""
    dtype, side = jnp.bfloat16, config.image_size // config.vae.factor

    def shapes(tree: Any) -> Any:
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, dtype, sharding=NamedSharding(mesh, P())), tree)

    def array(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, P()))

    params = param_shapes(config)
    latent = array(1, side, side, config.vae.latent_channels)

    def step(params: Any, x: jax.Array, t: jax.Array, context: jax.Array) -> jax.Array:
        out: jax.Array = UNet(config.unet, dtype).apply({"params": params}, x, t, context)
        return out

    def decode(params: Any, latent: jax.Array) -> jax.Array:
        out: jax.Array = autoencoder(config.vae, dtype).apply({"params": params}, latent, method="decode")
        return out

    inputs = array(BRANCHES, *latent.shape[1:]), array(BRANCHES), array(BRANCHES, 77, config.unet.context_dim)
    return {
        "unet": (step, (shapes(params["unet"]), *inputs)),
        "decoder": (decode, (shapes(params["vae"]), latent)),
    }


def measure(config: ModelConfig, devices: list[jax.Device], count: int) -> list[dict[str, Any]]:
    """Returns what is exchanged in each program of a model on `count` devices."""
    mesh = placement.make_mesh(devices[:count], count)
    out = []
    for name, (function, inputs) in programs(config, mesh).items():
        start = time.monotonic()
        compiled = placement.divided_by_rows(function, mesh).lower(*inputs).compile()
        kinds = totals(collectives(compiled.as_text(), count))
        memory = compiled.memory_analysis()
        out.append(
            {
                "model": config.name, "size": config.image_size, "program": name, "devices": count,
                "exchanges": {kind: total.runs for kind, total in kinds.items()},
                "bytes": {kind: total.received for kind, total in kinds.items()},
                "total_exchanges": sum(total.runs for total in kinds.values()),
                "total_bytes": sum(total.received for total in kinds.values()),
                "temporary_bytes": memory.temp_size_in_bytes,
                "compile_seconds": round(time.monotonic() - start, 1),
            }
        )  # fmt: skip
        print(json.dumps(out[-1]), flush=True)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--topology", help="such as v5e:2x4; default: this computer's processor as eight devices")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--counts", nargs="+", type=int, default=[2, 4, 8])
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()
    devices = devices_of(args.topology)
    rows = [
        row for name in args.models for count in args.counts
        for row in measure(configs.get(name), devices, count)
    ]  # fmt: skip
    about = {"devices": args.topology or "cpu", "kind": devices[0].device_kind, "jax": jax.__version__,
             "dtype": "bfloat16", "branches": BRANCHES}  # fmt: skip
    args.out.write_text(json.dumps({**about, "programs": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
