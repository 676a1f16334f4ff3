"""sdjax beside OpenVINO and diffusers on the CPU: the full-size v1 networks with random weights, in turns.

    pip install '.[benchmark]'
    python benchmarks/against_peers.py --out benchmarks/results/against_peers_cpu

Measured are the UNet (`--batches` of latents of `--sides`), the autoencoder's decoder, the text encoder on two prompts,
and a whole picture of `--steps` DDIM steps with guidance, in float32 and bfloat16. diffusers runs as it is, with
channels_last, and compiled; `--peers` names fewer, where memory is short (four float32 copies of the UNet are 14 GB) or
PyTorch has no fast products of a type. All get the same weights, and outputs are compared. In each of `--repeats`
rounds all take their turn, so that a ratio is of two runs beside each other; kept are all seconds, and the least,
median and greatest ratio to sdjax.

`--processes` instead has each make a picture in a process of its own, from files: seconds from start to end, and the
process's highest memory use.

OUT.json holds all numbers, the processor and its flags, OUT.png the ratios. Rows that are there already are replaced if
they are measured again, and stay otherwise: the whole can be measured in parts, on a machine with nothing else to do.
"""

import argparse
import dataclasses
import gc
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata

import jax
import jax.numpy as jnp
import numpy as np
import peers
import torch

from sdjax import configs, convert
from sdjax.evaluate.benchmark import device_name, random_model
from sdjax.nn import AutoencoderKL, TextEncoder, UNet
from sdjax.pipeline.model import cast
from sdjax.tasks.text_to_image import text_to_image

PEERS = ["OpenVINO", "diffusers", "diffusers, channels_last", "diffusers, compiled"]
PROMPT = "a photograph of an astronaut riding a horse"
ONE = pathlib.Path(__file__).with_name("one_picture.py")
TELLS = ("case", "dtype", "batch", "side")  # which row it is
FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_tile")
FIRST = lambda a: np.moveaxis(np.asarray(a, np.float32), -1, 1)  # noqa: E731  channels first, as the peers have them


def timed(runs, repeats):
    """Returns each call's seconds, all in turn, and those of the first one, which does not count."""
    first, seconds = {}, {name: [] for name in runs}
    for i in range(1 + repeats):
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            taken = time.perf_counter() - begin
            if i:
                seconds[name].append(round(taken, 4))
            else:
                first[name] = round(taken, 2)
    return first, seconds


def ratios(seconds):
    """Returns least, median and greatest of each peer's seconds over sdjax's, round by round."""
    ours = seconds["sdjax"]
    out = {}
    for name, theirs in seconds.items():
        if name != "sdjax":
            each = sorted(b / a for a, b in zip(ours, theirs, strict=True))
            out[name] = [round(each[0], 3), round(statistics.median(each), 3), round(each[-1], 3)]
    return out


def network(case, pipe, dtype):
    """Returns sdjax's compiled call of one network."""
    c, kind = pipe.config, jnp.dtype(dtype)
    part, module, method = {
        "unet": ("unet", UNet(c.unet, kind), None),
        "decoder": ("vae", AutoencoderKL(c.vae, kind), "decode"),
        "text": ("text", TextEncoder(c.text, kind), None),
    }[case]
    params = jax.tree.map(lambda a: jnp.asarray(a, dtype), pipe.params[part])
    run = jax.jit(lambda params, *args: module.apply({"params": params}, *args, method=method))
    return lambda *args: run(params, *args).block_until_ready()


def arguments(case, pipe, batch, side):
    """Returns what sdjax's call takes, and what the peers' take."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, side, side, 4), np.float32)
    if case == "unet":
        t, context = np.full(batch, 500.0, np.float32), rng.standard_normal((batch, 77, 768), np.float32)
        return (x, t, context), (FIRST(x).copy(), t, context)
    if case == "decoder":
        return (x,), (FIRST(x / pipe.config.vae.scale_factor).copy(),)
    ids = np.asarray(pipe.tokenizer([PROMPT, ""], length=77, pad_token_id=49407))
    return (ids,), (ids.astype(np.int64),)


def network_runs(case, pipe, modules, dtype, batch, side, args):
    """Returns the calls of one network, all on the same input."""
    ours, theirs = arguments(case, pipe, batch, side)
    calls = {}
    if "OpenVINO" in args.peers:
        calls["OpenVINO"] = peers.openvino_call(peers.traced(modules[case], theirs), dtype)
    calls |= peers.torch_calls(modules[case], dtype, args.peers)
    run = network(case, pipe, dtype)
    runs = {"sdjax": lambda: run(*ours)}
    runs |= {name: lambda call=call: call(*theirs) for name, call in calls.items()}
    return runs, np.asarray if case == "text" else FIRST


def picture_runs(pipe, modules, dtype, side, args):
    """Returns calls that make a picture of 8 side x 8 side pixels by DDIM, from tokens to pixels."""
    from diffusers import DDIMScheduler

    pipe = dataclasses.replace(pipe, params=cast(pipe.params, dtype), dtype=dtype)
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip
    ids = np.asarray(pipe.tokenizer(["", PROMPT], length=77, pad_token_id=49407), np.int64)
    noise = np.random.default_rng(0).standard_normal((1, 4, side, side), np.float32)

    def picture(text, unet, decoder):
        context = text(ids)
        scheduler.set_timesteps(args.steps)
        x = torch.from_numpy(noise)
        for t in scheduler.timesteps:
            empty, told = torch.from_numpy(unet(np.tile(x, (2, 1, 1, 1)), np.full(2, t, np.float32), context)).chunk(2)
            x = scheduler.step(empty + 7.5 * (told - empty), t, x).prev_sample
        return decoder((x / pipe.config.vae.scale_factor).numpy())

    runs = {"sdjax": lambda: text_to_image(pipe, PROMPT, num_steps=args.steps, height=8 * side, width=8 * side)}
    if "OpenVINO" in args.peers:
        inputs = {"text": (ids,), "decoder": (noise,)}
        inputs["unet"] = np.tile(noise, (2, 1, 1, 1)), np.zeros(2, np.float32), np.zeros((2, 77, 768), np.float32)
        fast = {case: peers.openvino_call(peers.traced(modules[case], inputs[case]), dtype) for case in modules}
        runs["OpenVINO"] = lambda: picture(**fast)
    ways = {case: peers.torch_calls(module, dtype, [*args.peers, "diffusers"]) for case, module in modules.items()}
    for name in set(ways["unet"]) & set(args.peers):
        calls = {case: calls.get(name, calls["diffusers"]) for case, calls in ways.items()}
        runs[name] = lambda calls=calls: picture(**calls)
    return runs


def measure(pipe, modules, case, dtype, batch, side, args):
    """Returns a row of numbers of one case."""
    row = {"case": case, "dtype": dtype, "batch": batch, "side": side}
    if case == "picture":
        row["steps"] = args.steps
        runs = picture_runs(pipe, modules, dtype, side, args)
    else:
        runs, to_peer = network_runs(case, pipe, modules, dtype, batch, side, args)
        outputs = {name: run() for name, run in runs.items()} if args.check else {}
        if outputs:
            ours = to_peer(outputs.pop("sdjax"))
            row["difference"] = {
                name: float(np.linalg.norm(ours - out) / np.linalg.norm(out)) for name, out in outputs.items()
            }
    row["first"], row["seconds"] = timed(runs, args.repeats)
    row["ratios"] = ratios(row["seconds"])
    medians = {name: statistics.median(all_) for name, all_ in row["seconds"].items()}
    told = "; ".join(f"{name} {medians[name]:.2f} s ({row['ratios'][name][1]:.2f})" for name in row["ratios"])
    print(f"{case} {dtype} batch {batch} side {side}: sdjax {medians['sdjax']:.2f} s; {told}", flush=True)
    return row


def spent(command, **environment):
    """Returns the seconds and the highest memory use in bytes of a command that prints the latter in KiB."""
    begin = time.perf_counter()
    process = subprocess.run(command, env={**os.environ, **environment}, stdout=subprocess.PIPE, check=True)
    return {"seconds": time.perf_counter() - begin, "peak": 1024 * int(process.stdout.split()[-1])}


def processes(pipe, modules, args):
    """Yields what whole processes take for a picture from files: the second one, with programs that the first kept."""
    import openvino

    with tempfile.TemporaryDirectory() as scratch:
        root = pathlib.Path(scratch)
        convert.save(pipe.config, pipe.params, root / "model", to="diffusers", tokenizer=pipe.tokenizer)
        for case in modules if "OpenVINO" in args.peers else ():
            _, theirs = arguments(case, pipe, 2 if case == "unet" else 1, args.sides[0])
            file = root / "model" / f"{case}.xml"
            openvino.save_model(peers.traced(modules[case], theirs), file, compress_to_fp16=False)
        np.save(root / "model" / "ids.npy", arguments("text", pipe, 1, 64)[1][0])
        modules.clear()
        gc.collect()
        for dtype in args.dtypes:
            for who in ["sdjax", *(who for who in ("diffusers", "OpenVINO") if who in args.peers)]:
                command = [sys.executable, str(ONE), who, str(root / "model"), dtype, str(8 * args.sides[0])]
                for turn in ("cold", "warm"):
                    row = {"process": f"a v1 picture of {args.steps} steps, {turn}", "dtype": dtype, "who": who}
                    row |= spent([*command, str(args.steps)], XDG_CACHE_HOME=str(root / "cache"))
                    print(f"{row['process']}, {dtype}, {who}: {row['seconds']:.1f} s, {row['peak'] / 2**30:.2f} GiB",
                          flush=True)  # fmt: skip
                    yield row


def machine():
    """Returns what the numbers depend on."""
    names = ("jax", "jaxlib", "torch", "diffusers", "openvino")
    found = {"device": device_name(jax.devices()[0]), "python": platform.python_version()}
    found["versions"] = {name: metadata.version(name) for name in names}
    listed = pathlib.Path("/proc/cpuinfo")
    flags = set(listed.read_text().split()) if listed.exists() else set()
    return found | {"cores": os.cpu_count(), "flags": [flag for flag in FLAGS if flag in flags]}


def main():
    """Measures, prints the ratios and writes OUT.json and OUT.png."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", required=True)
    parser.add_argument("--repeats", type=int, default=5, help="rounds that count")
    parser.add_argument("--cases", nargs="*", default=["unet", "decoder", "text", "picture"])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--batches", nargs="+", type=int, default=[2], help="of the UNet's latents")
    parser.add_argument(
        "--sides", nargs="+", type=int, default=[64], help="of latents; a picture's is eight times that"
    )
    parser.add_argument("--steps", type=int, default=20, help="of a picture")
    parser.add_argument("--peers", nargs="*", default=PEERS, help=", ".join(PEERS))
    parser.add_argument("--processes", action="store_true", help="whole processes instead")
    parser.add_argument("--check", action=argparse.BooleanOptionalAction, default=True, help="compare the outputs too")
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    out = pathlib.Path(args.out).with_suffix(".json")
    found = json.loads(out.read_text()) if out.exists() else {"results": [], "processes": []}
    where = machine()
    if any(found.get(name, value) != value for name, value in where.items()):
        raise SystemExit(f"{out} was measured elsewhere or with other versions: name another file with --out")
    found = {**where, **found}

    def keep(key, tells, row):
        same = lambda old: all(old[name] == row[name] for name in tells)  # noqa: E731
        found[key] = [old for old in found[key] if not same(old)] + [row]
        out.write_text(json.dumps(found, indent=1) + "\n")

    pipe = random_model(configs.get("sd1"), "float32")
    modules = peers.modules(pipe)
    pipe = dataclasses.replace(pipe, params=jax.tree.map(jnp.asarray, pipe.params))
    if args.processes:
        for row in processes(pipe, modules, args):
            keep("processes", ("process", "dtype", "who"), row)
    else:
        for dtype in args.dtypes:
            for case in args.cases:
                for side in args.sides if case != "text" else [64]:
                    for batch in args.batches if case == "unet" else [1]:
                        keep("results", TELLS, measure(pipe, modules, case, dtype, batch, side, args))
                        gc.collect()
    plot(found, out.with_suffix(".png"))


def plot(found, path):
    """Draws how many times as fast sdjax is as each, with the range."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    rows = found["results"]
    figure, axes = pyplot.subplots(figsize=(0.9 * len(rows) + 2, 3.6))
    for i, label in enumerate(("OpenVINO", "diffusers")):  # diffusers' best
        chosen = [
            min((ratio for name, ratio in row["ratios"].items() if name.startswith(label)), key=lambda ratio: ratio[1])
            for row in rows
        ]
        middle = np.array([ratio[1] for ratio in chosen])
        around = np.abs(np.array([[ratio[0], ratio[2]] for ratio in chosen]).T - middle)
        bars = axes.bar(np.arange(len(rows)) + 0.4 * i, middle, 0.38, yerr=around, label=label)
        axes.bar_label(bars, fmt="%.2f", fontsize=7)
    names = [f"{row['case']}\n{row['batch']} x {row['side']}\n{row['dtype']}" for row in rows]
    axes.set_xticks(np.arange(len(rows)) + 0.2, names, fontsize=7)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_ylabel("its seconds / sdjax's")
    axes.set_title(f"{found['device']}, {found['cores']} cores", fontsize=9)
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
