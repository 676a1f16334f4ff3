"""CPU seconds of a process that makes one picture, when kept programs are there: user and system time of all threads.

    python benchmarks/start.py                               # the built-in model, in Python and by the command
    python benchmarks/start.py MODEL.safetensors --size 256 --steps 1 --dtype float16 --times 1 \
        --ways python "low memory" "image to image" --out benchmarks/results/start_sd1_cpu.json

Each way has a cache folder of its own. A first process fills it and has a row of its own; the others have the median of
`--times` processes, which take turns. Python's bytecode is kept in a folder too, as for an installed package. `again`
is a second picture in the same process: what the picture itself takes. The processes count what they trace, compile and
read from the cache. CPU seconds depend less on other work than seconds do, but they do, so the load is written beside
them.
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile

PROMPT = "a rocket on a green background"
WAYS = ["python", "command", "low memory", "image to image"]
EVENTS = {
    "traced": "/jax/core/compile/jaxpr_trace_duration",
    "compiled or read": "/jax/compilation_cache/compile_requests_use_cache",
    "read": "/jax/compilation_cache/cache_hits",
}


def cpu():
    """Returns the CPU seconds of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def picture(model, way, size, steps, dtype):
    """Makes a picture twice, and prints what each took and what was traced."""
    import sdjax

    pipe = sdjax.load(model, low_memory=way == "low memory", **({} if dtype is None else {"dtype": dtype}))
    import jax
    import numpy as np

    loaded, counts, seconds = cpu(), dict.fromkeys(EVENTS, 0), 0.0

    def count(event, duration=0.0, **_):
        nonlocal seconds
        seconds += duration if event == EVENTS["traced"] else 0
        for name, one in EVENTS.items():
            counts[name] += event == one

    jax.monitoring.register_event_listener(count)
    jax.monitoring.register_event_duration_secs_listener(count)
    given = {} if steps is None else {"num_steps": steps}
    sized = {} if size is None else {"height": size, "width": size}

    def draw():
        if way == "image to image":
            side = size or 64
            sdjax.image_to_image(pipe, np.zeros((side, side, 3), np.uint8), PROMPT, **given)
        else:
            sdjax.text_to_image(pipe, PROMPT, **given, **sized)

    draw()
    first, found = cpu(), {**counts, "tracing_s": round(seconds, 3)}
    draw()
    print(json.dumps({"load": loaded, "cpu_s": first, "again": cpu() - first, **found}))


def run(args, way, place):
    """Returns the row of one process."""
    left_out = ("PYTHONDONTWRITEBYTECODE", "JAX_COMPILATION_CACHE_DIR")
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    environment |= {"XDG_CACHE_HOME": f"{place}/cache {way}", "XDG_DATA_HOME": f"{place}/data"}
    environment["PYTHONPYCACHEPREFIX"] = f"{place}/bytecode"
    if way == "command":
        sized = [] if args.size is None else ["--H", str(args.size), "--W", str(args.size)]
        given = [] if args.steps is None else ["--steps", str(args.steps)]
        typed = [] if args.dtype is None else ["--dtype", args.dtype]
        model = [] if args.model is None else ["--ckpt", args.model]
        what = ["-m", "sdjax", "txt2img", "--prompt", PROMPT, "--outdir", f"{place}/pictures"]
        command = [*what, *sized, *given, *typed, *model]
    else:
        command = [__file__, "--one", json.dumps([args.model, way, args.size, args.steps, args.dtype])]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, *command], env=environment, check=True, stdout=subprocess.PIPE, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if way != "command":
        return json.loads(done.stdout.splitlines()[-1])
    return {"cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}


def main():
    """Measures, prints and writes OUT."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", nargs="?", help="the built-in model if left out")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS[:2])
    parser.add_argument("--size", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--dtype")
    parser.add_argument("--times", type=int, default=7, help="at least 1")
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        picture(*json.loads(args.one))
        return
    import jax

    from sdjax.evaluate.benchmark import device_name

    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as place:
        firsts = [run(args, way, place) for way in args.ways]
        later = [[run(args, way, place) for way in args.ways] for _ in range(args.times)]
    rows = []
    for way, first, others in zip(args.ways, firsts, zip(*later, strict=True), strict=True):
        for process, found in (("first", [first]), ("later", others)):
            values = {name: round(statistics.median(one[name] for one in found), 3) for name in found[0]}
            spread = [round(min(one["cpu_s"] for one in found), 2), round(max(one["cpu_s"] for one in found), 2)]
            rows.append({"way": way, "process": process, **values, "range": spread})
            print(json.dumps(rows[-1]), flush=True)
    about = {"size": args.size, "steps": args.steps, "dtype": args.dtype, "times": args.times}
    found = {
        "device": device_name(jax.local_devices()[0]), "machine_load": [load, os.getloadavg()[0]], **about,
        "model": "built-in" if args.model is None else pathlib.Path(args.model).name, "rows": rows,
    }  # fmt: skip
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
