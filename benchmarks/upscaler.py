"""The memory that the x4 upscaler needs: its decoder at once and band by band, and its sampler.

    python benchmarks/upscaler.py --plan 128 256 512 --measure 128 --out benchmarks/results/upscaler.json

`--plan`: XLA's plan for pictures of these sides, nothing is allocated. `--measure`: decodes a random latent with random
weights of full size, each way in a process of its own; gives its peak resident memory (parameters, Python and JAX
included), seconds after compilation, and how far the two pictures are apart. Sides are those of the pictures given.
"""

import argparse
import functools
import json
import pathlib
import platform
import resource
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from sdjax import configs
from sdjax.diffusion.conditioning import Conditioning
from sdjax.diffusion.guidance import ClassifierFree
from sdjax.diffusion.network import UNetNetwork
from sdjax.nn import AutoencoderKL, param_shapes
from sdjax.pipeline import placement, programs, tiling
from sdjax.samplers import SAMPLERS, chunks, repeat
from sdjax.schedule import NoiseSchedule

GIB = 2**30
CONFIG = configs.get("x4_upscaler")


def decoder(way: str):
    """Returns the compiled function (parameters, latent) -> image, float32."""
    if way == "bands":
        return jax.jit(functools.partial(tiling.decode, CONFIG.vae, jnp.float32))
    return jax.jit(lambda params, latent: AutoencoderKL(CONFIG.vae).apply({"params": params}, latent, method="decode"))


def sampler(side: int, dtype: str):
    """Returns the sampler's lowered program for one picture with guidance."""
    mesh = placement.make_mesh(jax.devices()[:1])
    network, ddim = UNetNetwork(CONFIG.unet, dtype), SAMPLERS["ddim"]()
    program = programs.SampleProgram(network, CONFIG.schedule.prediction, ddim.rule)
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype)), param_shapes(CONFIG)["unet"])
    rows = next(chunks(repeat(ddim.steps(NoiseSchedule(CONFIG.schedule), 50), 1), programs.CHUNK))
    shape = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    conditioning = Conditioning(
        context=shape((1, CONFIG.text.max_length, CONFIG.text.width)),
        concat=shape((1, side, side, 3)),
        label=jax.ShapeDtypeStruct((1,), jnp.int32),
    )
    how = ((conditioning, conditioning), ClassifierFree(np.float32([9]), np.float32([0])))
    latent = shape((1, side, side, CONFIG.vae.latent_channels))
    state = jax.eval_shape(functools.partial(programs.begin, program), params, latent, *how)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
    run = placement.compiled(programs.sample, program, mesh, programs.SPREAD, "jit")
    return run.lower(params, programs.images_first(rows), state, keys, *how, None)


def planned(lowered) -> float:
    """Returns the GiB beside parameters that XLA plans."""
    plan = lowered.compile().memory_analysis()
    return (plan.temp_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes) / GIB


def plan(side: int) -> dict:
    """Returns the plans for a picture of side x side."""
    shapes, latent = param_shapes(CONFIG)["vae"], jax.ShapeDtypeStruct((1, side, side, 4), jnp.float32)
    out = {"side_given": side, "side_made": 4 * side}
    for way in ("at_once", "bands"):
        out[f"decoder_{way}"] = planned(decoder(way).lower(shapes, latent))
    out["sampler_float32"] = planned(sampler(side, "float32"))
    return out


def decode_here(way: str, side: int, path: str) -> None:
    """Decodes in this process, writes the picture and prints the peak and the seconds."""
    rng = np.random.default_rng(0)

    def leaf(at, shape):
        kind = str(at[-1].key)
        if kind == "scale":
            return np.ones(shape.shape, np.float32)
        # Unit variance throughout: as many inputs as the kernel has beside its last axis
        size = 0.02 if kind == "bias" else (np.prod(shape.shape[:-1]) / 2) ** -0.5
        return (size * rng.standard_normal(shape.shape, np.float32)).astype(np.float32)

    params = jax.tree_util.tree_map_with_path(leaf, param_shapes(CONFIG)["vae"])
    latent = 0.08 * rng.standard_normal((1, side, side, 4), np.float32)
    params, latent = jax.device_put((params, latent))
    run = decoder(way).lower(params, latent).compile()
    start = time.perf_counter()
    image = np.asarray(run(params, latent))
    seconds = time.perf_counter() - start
    np.save(path, image)
    print(json.dumps({"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, "seconds": seconds}))


def measure(side: int, ways: list[str]) -> dict:
    """Returns the peaks (GiB) and seconds of both ways, and the largest difference of their pictures."""
    out, images = {"side_given": side, "side_made": 4 * side}, []
    for way in ways:
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/image.npy"
            command = [sys.executable, __file__, "--child", way, str(side), path]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
            out |= {f"{key}_{way}": value for key, value in json.loads(done.stdout.splitlines()[-1]).items()}
            images.append(np.load(path))
    if len(images) == 2:
        out["largest_difference"] = float(np.abs(images[0] - images[1]).max())
        out["largest_value"] = float(np.abs(images[0]).max())
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", nargs="*", type=int, default=[128, 256, 512], metavar="SIDE")
    parser.add_argument("--measure", nargs="*", type=int, default=[128], metavar="SIDE")
    parser.add_argument("--ways", nargs="+", default=["at_once", "bands"], choices=["at_once", "bands"])
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        way, side, path = args.child
        decode_here(way, int(side), path)
        return
    out = {"processor": platform.processor() or platform.machine(), "jax": jax.__version__}
    out |= {"device": jax.devices()[0].device_kind, "planned_gib": [], "measured_gib": []}
    for kind, sides in ("planned_gib", args.plan), ("measured_gib", args.measure):
        for side in sides:
            row = plan(side) if kind == "planned_gib" else measure(side, args.ways)
            out[kind].append(row)
            print(kind, row, flush=True)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
