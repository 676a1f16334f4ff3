"""sdjax beside diffusers on the CPU: the full-size v1 networks with random weights, alternating in one process.

    pip install 'sdjax[benchmark]'
    python benchmarks/against_diffusers.py --out benchmarks/results/against_diffusers_cpu

Measured are the UNet on two latents of 64 x 64 (float32 and bfloat16), the autoencoder's decoder of one, the text
encoder on two prompts, and text to image of one with four steps and guidance; `--side` takes smaller latents. diffusers
runs as it is, with channels_last, and compiled (`--compile`, if torch.compile works here); the best of these is what
sdjax is compared with. Every number is a median of `--repeats` rounds, and in each round all take their turn. Both get
the same weights, so that their outputs can be compared too. `--no-peers` measures sdjax alone, where PyTorch has no
fast products of a type: in bfloat16 on processors without AVX-512.

Then each makes pictures in processes of its own, from a folder on disk: one of the full-size model, one of the built-in
model, with nothing compiled before (cold) and with everything (warm). Seconds are from the process's start to its end.

OUT.json holds all numbers, OUT.png the ratios. Rows that OUT.json holds already stay if they are not measured again, so
that the whole can be measured in parts; a ratio does not give way to sdjax's time alone.
"""

import argparse
import copy
import dataclasses
import gc
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from sdjax import builtin, configs, convert
from sdjax.benchmark import device_name, random_model
from sdjax.convert.model import model_of_params
from sdjax.convert.writing import tensors_of
from sdjax.generate import text_to_image
from sdjax.nn import AutoencoderKL, TextEncoder, UNet
from sdjax.pipeline import cast

PROMPT = "a photograph of an astronaut riding a horse"
ONE = pathlib.Path(__file__).with_name("one_picture.py")
NAMES = {"results": ("case", "dtype", "side"), "processes": ("process", "dtype", "who")}  # what tells rows apart
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def timed(runs, repeats):
    """Returns the median seconds of each function: called in turn, `repeats` rounds, after one that does not count."""
    first, times = {}, {name: [] for name in runs}
    for name, run in runs.items():
        begin = time.perf_counter()
        run()
        first[name] = time.perf_counter() - begin
    for _ in range(repeats):
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - begin)
    return {
        name: {"seconds": statistics.median(all_), "least": min(all_), "first": first[name]}
        for name, all_ in times.items()
    }  # fmt: skip


def peer_modules(pipe):
    """Returns diffusers' and transformers' modules with the pipeline's weights."""
    model = model_of_params(pipe.config, pipe.params, pipe.tokenizer)
    tensors = {name: leaf.read() for name, leaf in tensors_of(model, "diffusers").items()}

    def weights(part):
        own = {name.removeprefix(part + "/"): array for name, array in tensors.items() if name.startswith(part + "/")}
        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in own.items()}

    unet = diffusers.UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8, sample_size=64)
    vae = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4, sample_size=512,
    )  # fmt: skip
    tower = transformers.CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, vocab_size=49408
    )
    text = transformers.CLIPTextModel(tower)
    for module, part in ((unet, "unet"), (vae, "vae"), (text, "text_encoder")):
        own = weights(part)
        if not any(name.startswith("text_model.") for name in module.state_dict()):  # a level that transformers 5 lacks
            own = {name.removeprefix("text_model."): array for name, array in own.items()}
        missing, unexpected = module.load_state_dict(own, strict=False)
        lost = [name for name in missing if "position_ids" not in name] + unexpected
        if lost:
            raise SystemExit(f"{part}: sdjax and diffusers name other tensors, such as {lost[0]}")
        module.eval().requires_grad_(False)
    return unet, vae, text


def as_torch(array):
    return torch.from_numpy(np.array(array))


def peers(module, call, dtype, compiled):
    """Returns the ways in which PyTorch runs a module: as it is, channels_last, compiled."""
    plain = module.to(DTYPES[dtype])
    out = {"diffusers": lambda: call(plain)}
    last = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    out["diffusers, channels_last"] = lambda: call(last)
    if compiled:
        fast = torch.compile(last)
        out["diffusers, compiled"] = lambda: call(fast)
    return out


def unet_case(pipe, unet, dtype, side, compiled):
    """The UNet on two latents of side x side."""
    rng = np.random.default_rng(0)
    x, context = rng.standard_normal((2, side, side, 4), np.float32), rng.standard_normal((2, 77, 768), np.float32)
    t = np.array([500.0, 500.0], np.float32)
    network = UNet(pipe.config.unet, jnp.dtype(dtype))
    params = jax.tree.map(lambda a: jnp.asarray(a, dtype), pipe.params["unet"])
    run = jax.jit(lambda p, *args: network.apply({"params": p}, *args))
    tensors = as_torch(np.moveaxis(x, -1, 1)).to(DTYPES[dtype]), as_torch(t), as_torch(context).to(DTYPES[dtype])
    ours = lambda: run(params, x, t, context).block_until_ready()  # noqa: E731
    theirs = peers(unet, lambda m: m(tensors[0], tensors[1], encoder_hidden_states=tensors[2]).sample, dtype, compiled)
    return {"sdjax": ours, **theirs}, lambda out: np.moveaxis(np.asarray(out, np.float32), -1, 1)


def decoder_case(pipe, vae, dtype, side, compiled):
    """The autoencoder's decoder of a latent of side x side."""
    z = np.random.default_rng(1).standard_normal((1, side, side, 4), np.float32)
    decoder = AutoencoderKL(pipe.config.vae, jnp.dtype(dtype))
    params = jax.tree.map(lambda a: jnp.asarray(a, dtype), pipe.params["vae"])
    run = jax.jit(lambda p, z: decoder.apply({"params": p}, z, method="decode"))
    latent = as_torch(np.moveaxis(z, -1, 1)).to(DTYPES[dtype]) / pipe.config.vae.scale_factor
    module = Decoder(vae)
    ours = lambda: run(params, z).block_until_ready()  # noqa: E731
    return {"sdjax": ours, **peers(module, lambda m: m(latent), dtype, compiled)}, lambda out: np.moveaxis(
        np.asarray(out, np.float32), -1, 1
    )


class Decoder(torch.nn.Module):
    """Decoding alone, as a module, so that it can be compiled."""

    def __init__(self, vae):
        super().__init__()
        self.post_quant_conv, self.decoder = vae.post_quant_conv, vae.decoder

    def forward(self, z):
        return self.decoder(self.post_quant_conv(z))


def text_case(pipe, text, dtype, side, compiled):
    """The text encoder on two prompts."""
    ids = pipe.tokenizer([PROMPT, ""], length=77, pad_token_id=49407)
    network = TextEncoder(pipe.config.text, jnp.dtype(dtype))
    params = jax.tree.map(lambda a: jnp.asarray(a, dtype), pipe.params["text"])
    run = jax.jit(lambda p, ids: network.apply({"params": p}, ids))
    tokens = as_torch(np.asarray(ids, np.int64))
    plain = text.to(DTYPES[dtype])
    runs = {"sdjax": lambda: run(params, ids).block_until_ready(), "diffusers": lambda: plain(tokens)[0]}
    if compiled:
        fast = torch.compile(plain)
        runs["diffusers, compiled"] = lambda: fast(tokens)[0]
    return runs, lambda out: np.asarray(out, np.float32)


def picture_case(pipe, modules, dtype, side, compiled):
    """Text to image of 8 side x 8 side pixels, four DDIM steps with guidance."""
    unet, vae, text = modules
    pipe = dataclasses.replace(pipe, params=cast(pipe.params, dtype), dtype=dtype)
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip
    ids = as_torch(np.asarray(pipe.tokenizer(["", PROMPT], length=77, pad_token_id=49407), np.int64))
    noise = torch.randn((1, 4, side, side), generator=torch.Generator().manual_seed(0), dtype=DTYPES[dtype])

    def picture(network, decoder):
        context = text.to(DTYPES[dtype])(ids)[0]
        scheduler.set_timesteps(4)
        x = noise
        for t in scheduler.timesteps:
            out = network(torch.cat([x, x]), t, encoder_hidden_states=context).sample
            empty, told = out.chunk(2)
            x = scheduler.step(empty + 7.5 * (told - empty), t, x).prev_sample
        return decoder(x / pipe.config.vae.scale_factor)

    last = [copy.deepcopy(m).to(DTYPES[dtype]).to(memory_format=torch.channels_last) for m in (unet, Decoder(vae))]
    runs = {
        "sdjax": lambda: text_to_image(pipe, PROMPT, num_steps=4, height=8 * side, width=8 * side),
        "diffusers, channels_last": lambda: picture(*last),
    }
    if compiled:
        fast = [torch.compile(module) for module in last]
        runs["diffusers, compiled"] = lambda: picture(*fast)
    return runs, None


def measure(dtype, args):
    """Yields a row of numbers for each case in one dtype."""
    if not args.cases:
        return
    pipe = random_model(configs.get("sd1"), "float32")
    unet, vae, text = peer_modules(pipe)
    cases = {
        "unet": (unet_case, unet),
        "decoder": (decoder_case, vae),
        "text": (text_case, text),
        "picture": (picture_case, (unet, vae, text)),
    }
    for name in args.cases:
        case, modules = cases[name]
        runs, to_peer = case(pipe, modules, dtype, args.side, args.compile)
        if not args.peers:
            runs = {"sdjax": runs["sdjax"]}
        row = {"case": name, "dtype": dtype, "side": args.side, "repeats": args.repeats}
        row["times"] = timed(runs, args.repeats)
        ours = row["times"]["sdjax"]
        said = f"{name:8} {dtype:9} sdjax {ours['seconds']:.3f} s, compiling {ours['first'] - ours['seconds']:.0f} s"
        if args.peers:
            if to_peer is not None:
                mine, theirs = to_peer(runs["sdjax"]()), runs["diffusers"]().float().numpy()
                row["difference"] = float(np.linalg.norm(mine - theirs) / np.linalg.norm(theirs))
            best, who = min((t["seconds"], who) for who, t in row["times"].items() if who != "sdjax")
            row["best_peer"], row["ratio"] = who, best / ours["seconds"]
            said += f"; {who} {best:.3f} s: sdjax is {row['ratio']:.2f} times as fast"
        print(said, flush=True)
        yield row
        del runs
        gc.collect()


def spent(command, **environment):
    """Returns the seconds and the highest memory use in bytes of a command."""
    begin = time.perf_counter()
    process = subprocess.run(command, env={**os.environ, **environment}, stdout=subprocess.PIPE, check=True)
    return {"seconds": time.perf_counter() - begin, "peak": 1024 * int(process.stdout.split()[-1])}


def processes(dtype, args):
    """Yields what whole processes take: a picture of the full-size model, the first of the built-in one."""
    if not args.processes:
        return
    with tempfile.TemporaryDirectory() as scratch:
        root = pathlib.Path(scratch)
        pipe = random_model(configs.get("sd1"), "float32")
        convert.save(pipe.config, pipe.params, root / "v1", to="diffusers", tokenizer=pipe.tokenizer)
        convert.convert(builtin.folder(), root / "builtin", to="diffusers")
        del pipe
        gc.collect()

        def run(what, who, *rest):
            row = {"process": what, "dtype": dtype, "who": who}
            row |= spent([sys.executable, str(ONE), who, *rest], XDG_CACHE_HOME=str(root / "cache"))
            print(f"{what}, {dtype}, {who}: {row['seconds']:.1f} s, {row['peak'] / 2**30:.2f} GiB", flush=True)
            return row

        for what, name, size, steps in (
            ("a v1 picture of 2 steps", "v1", 512, 2),
            ("the built-in model", "builtin", 64, 50),
        ):
            for turn in "cold", "warm":
                for who in "sdjax", "diffusers":
                    yield run(f"{what}, {turn}", who, str(root / name), dtype, str(size), str(steps))


def main():
    """Measures, prints the ratios and writes OUT.json and OUT.png."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", required=True)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="also with torch.compile")
    parser.add_argument("--cases", nargs="*", default=["unet", "decoder", "text", "picture"])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--side", type=int, default=64, help="of latents; a picture's is eight times as large")
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True, help="no: sdjax alone")
    parser.add_argument("--processes", action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    out = pathlib.Path(args.out).with_suffix(".json")
    found = json.loads(out.read_text()) if out.exists() else {"results": [], "processes": []}
    where = {
        "device": device_name(jax.devices()[0]), "jax": jax.__version__, "torch": torch.__version__,
        "diffusers": diffusers.__version__,
    }  # fmt: skip
    if any(found.get(name, value) != value for name, value in where.items()):
        raise SystemExit(f"{out} was measured elsewhere or with other versions: name another file with --out")
    found |= where
    print(", ".join(f"{name} {value}" for name, value in where.items()), flush=True)
    for dtype in args.dtypes:
        for rows, key in ((measure(dtype, args), "results"), (processes(dtype, args), "processes")):
            for row in rows:
                same = [old for old in found[key] if all(old[name] == row[name] for name in NAMES[key])]
                if "ratio" not in row and any("ratio" in old for old in same):
                    continue
                found[key] = [old for old in found[key] if old not in same] + [row]
                out.write_text(json.dumps(found, indent=1) + "\n")
            gc.collect()
    plot(found, out.with_suffix(".png"))


def plot(found, path):
    """Draws how many times as fast sdjax is."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    rows = [row for row in found["results"] if "ratio" in row]
    names = [f"{row['case']} {row['side']}\n{row['dtype']}" for row in rows]
    ratios = [row["ratio"] for row in rows]
    figure, axes = pyplot.subplots(figsize=(1.1 * len(names) + 1.5, 3.2))
    bars = axes.bar(names, ratios, color=["#3a7" if ratio >= 1 else "#c75" for ratio in ratios])
    axes.bar_label(bars, fmt="%.2f")
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_ylabel("diffusers' best time / sdjax's")
    axes.set_title(found["device"], fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
