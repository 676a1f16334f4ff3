"""The memory that a picture needs, from XLA's plan. Programs are only compiled; nothing is allocated.

    python benchmarks/memory.py --out benchmarks/results/memory.json

For each dtype and size it compiles the three programs of text to image (text encoder, sampler with guidance, decoder)
at batch 1 and adds the whole model's parameters to what each needs beside its own. The plan is that of the backend it
runs on: XLA's CPU backend computes half precision through float32 copies in places where a GPU does not.
"""

import argparse
import functools
import json
import pathlib
import platform

import jax
import jax.numpy as jnp
import numpy as np

from sdjax import configs
from sdjax.diffusion.conditioning import Conditioning
from sdjax.diffusion.guidance import ClassifierFree
from sdjax.diffusion.network import UNetNetwork
from sdjax.nn import param_shapes
from sdjax.pipeline import placement, programs
from sdjax.samplers import SAMPLERS, chunks, repeat
from sdjax.schedule import NoiseSchedule

GIB = 2**30


def lowered(config, dtype: str, side: int, params):
    """Yields (name, parameters used, jax.stages.Lowered) of the programs that a picture needs."""
    mesh = placement.make_mesh(jax.devices()[:1])
    text, vae = config.text, config.vae
    ids = jax.ShapeDtypeStruct((1, text.max_length), jnp.int32)
    run = placement.compiled(programs.encode_text, (text, dtype, False), mesh, (False, True), "jit")
    yield "text", "text", run.lower(params["text"], ids)

    sampler = SAMPLERS["ddim"]()
    latent = jax.ShapeDtypeStruct((1, side // vae.factor, side // vae.factor, vae.latent_channels), jnp.float32)
    rows = next(chunks(repeat(sampler.steps(NoiseSchedule(config.schedule), 50), 1), programs.CHUNK))
    conditioning = Conditioning(context=jax.ShapeDtypeStruct((1, text.max_length, text.width), jnp.float32))
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
    program = programs.SampleProgram(UNetNetwork(config.unet, dtype), config.schedule.prediction, sampler.rule)
    run = placement.compiled(programs.sample, program, mesh, programs.SPREAD, "jit")
    how = ((conditioning, conditioning), ClassifierFree(np.float32([7.5]), np.float32([0])))
    state = jax.eval_shape(functools.partial(programs.begin, program), params["unet"], latent, *how)
    yield "sampler", "unet", run.lower(params["unet"], programs.images_first(rows), state, keys, *how, None)

    run = placement.compiled(programs.decode, programs.VAEProgram(vae, dtype), mesh, (False, True), "jit")
    yield "decoder", "vae", run.lower(params["vae"], latent)


def measure(name: str, dtype: str, side: int) -> dict:
    """Returns bytes: the model's parameters, each program's working memory, and the peak with parameters included."""
    config = configs.get(name)
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype)), param_shapes(config))
    size = {part: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params[part])) for part in params}
    out = {"model": name, "dtype": dtype, "side": side, "parameters": sum(size.values())}
    for program, _, one in lowered(config, dtype, side, params):
        m = one.compile().memory_analysis()
        out[program] = m.temp_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes
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
