"""Memory and time of a whole picture by sdjax, diffusers, OpenVINO and stable-diffusion.cpp, a process each.

    pip install '.[benchmark]'
    python benchmarks/small_memory.py MODEL.safetensors --folder /tmp/peers --out benchmarks/results/small_memory_cpu

MODEL is a v1 model in float16 as a single file, such as `benchmarks/full_size.py` makes. What the tools read is made of
it in `--folder`, once. `--tools` names fewer tools, `--dtypes` fewer of their types. Those that are not installed are
left out; `--python` names the Python that has one. stable-diffusion.cpp is stable-diffusion-cpp-python, built from its
source for this processor.

Measured are the highest resident memory that the kernel counts (VmHWM), which includes compiling, and the seconds and
CPU seconds from start to end. Each picture is made twice if its programs are not kept yet: rows are of the second one.
Memory does not depend on what else runs on the machine. Seconds do, so the machine's load is written beside them.
OUT.json holds all rows, OUT.png shows the memory. Rows that are there already are replaced if they are measured again.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import resource
import subprocess
import sys
import time
from importlib import metadata

ONE = pathlib.Path(__file__).with_name("one_picture.py")
SMALL = ["float16", "q8_0", "q4_0"]
TOOLS = {  # the types of each tool, and the module that it needs
    "sdjax": (["float32"], "jax"),
    "sdjax, low memory": (SMALL, "jax"),
    "diffusers": (["float32"], "diffusers"),  # bfloat16 takes hours on a processor without it
    "OpenVINO": (["float32"], "openvino"),  # from files in float16
    "stable-diffusion.cpp": (SMALL, "stable_diffusion_cpp"),
    "stable-diffusion.cpp, low memory": (SMALL, "stable_diffusion_cpp"),
}
MIB = 2**10  # KiB


def made(tool, dtype, model, folder):
    """Returns what a tool reads, and makes it of the model if it is not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    sdjax = [sys.executable, "-m", "sdjax", "convert", str(model)]
    if dtype.startswith("q"):
        file, command = folder / f"{dtype}.gguf", [*sdjax, str(folder / f"{dtype}.gguf"), "--quantise", dtype]
    elif tool == "diffusers":
        file, command = folder / "diffusers", [*sdjax, str(folder / "diffusers"), "--to", "diffusers"]
    elif tool == "OpenVINO":
        file, command = folder / "openvino", [sys.executable, __file__, str(model), "--networks", str(folder)]
    else:
        return model
    if not file.exists():
        subprocess.run(command, check=True)
    return file


def networks(model, folder):
    """Writes OpenVINO's networks, with weights in float16, and the ids of the prompt's tokens."""
    import numpy as np
    import one_picture
    import openvino
    import peers

    import sdjax

    pipe = sdjax.load(model, dtype="float32")
    ids = np.asarray(pipe.tokenizer([one_picture.PROMPT, ""], length=77, pad_token_id=49407))[::-1].astype(np.int64)
    shapes = {"unet": [(2, 4, None, None), (2,), (2, 77, 768)], "decoder": [(1, 4, None, None)], "text": [(2, 77)]}
    modules = peers.modules(pipe)
    partial = folder / "openvino.partial"
    partial.mkdir(exist_ok=True)
    np.save(partial / "ids.npy", ids)
    for case, sizes in shapes.items():
        inputs = [ids] if case == "text" else [np.zeros([n or 64 for n in size], np.float32) for size in sizes]
        model = peers.traced(modules.pop(case), inputs, [[-1 if n is None else n for n in size] for size in sizes])
        openvino.save_model(model, partial / f"{case}.xml", compress_to_fp16=True)
    partial.rename(folder / "openvino")


def measure(tool, python, model, dtype, size, steps):
    """Returns a row: MiB and seconds of a process, and the machine's load when it began and ended."""
    command = [python, str(ONE), tool, str(model), dtype, str(size), str(steps)]
    load, before, begin = os.getloadavg()[0], spent(), time.perf_counter()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    seconds = time.perf_counter() - begin
    return {
        "tool": tool, "dtype": dtype, "size": size, "steps": steps, "mib": int(done.stdout.split()[-1]) // MIB,
        "seconds": round(seconds, 1), "cpu_seconds": round(spent() - before, 1),
        "load": [round(load, 1), round(os.getloadavg()[0], 1)],
    }  # fmt: skip


def spent():
    """Returns the CPU seconds of all child processes that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return children.ru_utime + children.ru_stime


def draw(rows, out):
    """Draws the memory of each tool as bars, one for each size and number of steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = sorted(rows, key=lambda row: (row["size"], row["steps"], row["mib"]), reverse=True)
    names = [f"{row['tool']}, {row['dtype']}, {row['size']} px, {row['steps']} steps" for row in rows]
    figure, axes = pyplot.subplots(figsize=(8, 0.8 + 0.35 * len(rows)))
    colours = ["tab:orange" if row["tool"].startswith("sdjax") else "tab:gray" for row in rows]
    axes.barh(names, [row["mib"] / MIB for row in rows], color=colours)
    axes.set_xlabel("highest memory of the process, GiB")
    figure.savefig(out, bbox_inches="tight", dpi=100)


def main():
    """Measures, prints and writes OUT."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--folder", type=pathlib.Path)
    parser.add_argument("--networks", type=pathlib.Path, help=argparse.SUPPRESS)  # where a child writes OpenVINO's
    parser.add_argument("--python", action="append", default=[], metavar="TOOL=PATH", help="another Python for a tool")
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--dtypes", nargs="+")
    parser.add_argument("--sizes", nargs="+", type=int, default=[512])
    parser.add_argument("--steps", nargs="+", type=int, default=[1, 4, 20])
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    if args.networks:
        return networks(args.model, args.networks)
    if not (args.folder and args.out):
        parser.error("--folder and --out are needed")
    pythons = dict(text.split("=", 1) for text in args.python)
    written = args.out.with_suffix(".json")
    rows = json.loads(written.read_text())["rows"] if written.exists() else []
    for tool in args.tools:
        dtypes, module = TOOLS[tool]
        if tool not in pythons and importlib.util.find_spec(module) is None:
            print(f"{tool} is left out: {module} is not installed")
            continue
        for dtype in dtypes if args.dtypes is None else [one for one in dtypes if one in args.dtypes]:
            what = (tool, pythons.get(tool, sys.executable), made(tool, dtype, args.model, args.folder), dtype)
            for size in args.sizes:
                if tool.startswith("sdjax"):  # compiles, and keeps the programs
                    print("first:", measure(*what, size, 1), flush=True)
                for steps in args.steps:
                    row = measure(*what, size, steps)
                    which = ("tool", "size", "steps", "dtype")
                    rows = [one for one in rows if any(one[name] != row[name] for name in which)] + [row]
                    print(row, flush=True)
                    written.write_text(json.dumps(surroundings() | {"rows": rows}, indent=1) + "\n")
    draw(rows, args.out.with_suffix(".png"))
    return None


def surroundings():
    """Returns the processor, and the versions of what is installed here."""
    info = pathlib.Path("/proc/cpuinfo").read_text()
    names = ("jax", "torch", "diffusers", "openvino", "stable-diffusion-cpp-python")
    versions = {name: metadata.version(name) for name in names if is_installed(name)}
    flags = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f" {flag} " in info]
    name = info.split("model name", 1)[-1].split("\n")[0].strip("\t: ")
    return {"processor": name, "cores": os.cpu_count(), "flags": flags, "versions": versions}


def is_installed(name):
    """Returns whether there is a package of that name."""
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    main()
