"""The memory of a whole picture by sdjax, diffusers, OpenVINO and stable-diffusion.cpp, each in a process of its own.

    python benchmarks/small_memory.py MODEL.safetensors --folder /tmp/peers --out benchmarks/results/small_memory_cpu

MODEL is a v1 model in float16 as a single file, such as `benchmarks/full_size.py` makes. `--folder` is where the model
is converted for diffusers. `--tools` names fewer tools. Those that are not installed are left out. OpenVINO's networks
are those that `against_peers.py --processes` leaves in a folder. Measured are the highest resident memory that the
kernel counts (VmHWM), which includes compiling, and the seconds from start to end. Memory does not depend on what else
runs on the machine. Seconds do, so the machine's load is written beside them. OUT.json holds all rows, OUT.png shows
the memory. Rows that are there already are replaced if they are measured again.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import time

ONE = pathlib.Path(__file__).with_name("one_picture.py")
TOOLS = {  # the type of each tool that takes least, and the module that it needs
    "sdjax, low memory": ("float16", "jax"),
    "sdjax": ("bfloat16", "jax"),
    "diffusers": ("bfloat16", "diffusers"),
    "OpenVINO": ("bfloat16", "openvino"),
    "stable-diffusion.cpp": ("float16", "stable_diffusion_cpp"),
}
MIB = 2**10  # KiB


def measure(tool, python, model, dtype, size, steps):
    """Returns a row: MiB and seconds of a process, and the machine's load when it began and ended."""
    load, begin = os.getloadavg()[0], time.perf_counter()
    command = [python, str(ONE), tool, str(model), dtype, str(size), str(steps)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    seconds = time.perf_counter() - begin
    return {
        "tool": tool, "dtype": dtype, "size": size, "steps": steps, "mib": int(done.stdout.split()[-1]) // MIB,
        "seconds": round(seconds, 1), "load": [round(load, 1), round(os.getloadavg()[0], 1)],
    }  # fmt: skip


def draw(rows, out):
    """Draws the memory of each tool as bars, one for each size and number of steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = sorted(rows, key=lambda row: (row["size"], row["steps"], row["mib"]), reverse=True)
    names = [f"{row['tool']}, {row['dtype']}, {row['size']} px, {row['steps']} steps" for row in rows]
    figure, axes = pyplot.subplots(figsize=(8, 0.8 + 0.35 * len(rows)))
    axes.barh(names, [row["mib"] / MIB for row in rows])
    axes.set_xlabel("highest memory of the process, GiB")
    figure.savefig(out, bbox_inches="tight", dpi=100)


def main():
    """Measures, prints and writes OUT."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    parser.add_argument("--openvino", type=pathlib.Path, help="the folder with OpenVINO's networks")
    parser.add_argument("--python", action="append", default=[], metavar="TOOL=PATH", help="another Python for a tool")
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--sizes", nargs="+", type=int, default=[512])
    parser.add_argument("--steps", nargs="+", type=int, default=[1, 4, 20])
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()
    pythons = dict(text.split("=", 1) for text in args.python)
    if "diffusers" in args.tools and not args.folder.exists():
        command = [sys.executable, "-m", "sdjax", "convert", args.model, args.folder, "--to", "diffusers"]
        subprocess.run(list(map(str, command)), check=True)
    written = args.out.with_suffix(".json")
    rows = json.loads(written.read_text())["rows"] if written.exists() else []
    for tool in args.tools:
        dtype, module = TOOLS[tool]
        if tool not in pythons and importlib.util.find_spec(module) is None:
            print(f"{tool} is left out: {module} is not installed")
            continue
        model = {"diffusers": args.folder, "OpenVINO": args.openvino}.get(tool, args.model)
        if model is None:
            print(f"{tool} is left out: name its folder")
            continue
        for size in args.sizes:
            for steps in args.steps:
                row = measure(tool, pythons.get(tool, sys.executable), model, dtype, size, steps)
                which = ("tool", "size", "steps", "dtype")
                rows = [one for one in rows if any(one[name] != row[name] for name in which)] + [row]
                print(row, flush=True)
                written.write_text(json.dumps({"cores": os.cpu_count(), "rows": rows}, indent=1) + "\n")
    draw(rows, args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
