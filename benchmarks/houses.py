"""Two checkouts of sdjax beside each other: steps of the UNet, decoding, pictures, training, compile and start times.

    git worktree add ../before 48a1d30 && make -C ../before .venv/.installed-test
    python benchmarks/houses.py --before ../before --after . --model sd1 --out benchmarks/results/houses_cpu.json

Each checkout runs in processes of its own, by its own `.venv/bin/python`. The two take turns, and each turn begins
with the one that ended the last, so that a machine that slows down slows both. A ratio is after / before of one turn:
below 1 is faster. Compiled programs are not kept from process to process.

`unet`, `decode` and `picture` are of --model, "builtin" or a released model's description with random weights, of which
both checkouts hold one at a time. `train` is the command `sdjax train` on the built-in model, timed by its own log.
`help` and `load` are whole processes: `sdjax --help`, and Python until the built-in model is loaded.
"""

import argparse
import importlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

PROMPT = "a rocket on a green background"
STEPS = 4  # of a picture
KINDS = ("unet", "decode", "picture")
LOAD = "import sdjax; sdjax.load()"
ENVIRONMENT = {**os.environ, "SDJAX_COMPILATION_CACHE": "0", "JAX_ENABLE_COMPILATION_CACHE": "0"}


def model(name: str) -> Any:
    """Returns the pipeline that is measured."""
    import sdjax
    from sdjax import configs

    if name == "builtin":
        return sdjax.load(dtype="float32")
    for home in ("sdjax.evaluate.benchmark", "sdjax.benchmark"):  # of today's checkouts, and of earlier ones
        try:
            return importlib.import_module(home).random_model(configs.get(name), "float32")
        except ModuleNotFoundError as error:
            if error.name not in ("sdjax.evaluate", "sdjax.evaluate.benchmark"):
                raise
    raise AssertionError("no home of random_model is left")


def program(kind: str, pipe: Any, size: int) -> Callable[[], Any]:
    """Returns what is timed; the first call compiles."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    import sdjax
    from sdjax.nn import AutoencoderKL, UNet

    config, side, rng = pipe.config, size // pipe.config.vae.factor, np.random.default_rng(0)
    if kind == "picture":
        return lambda: sdjax.text_to_image(pipe, PROMPT, seed=0, num_steps=STEPS, height=size, width=size)
    if kind == "decode":
        latent = rng.standard_normal((1, side, side, config.vae.latent_channels), np.float32)
        decode = jax.jit(lambda params, z: AutoencoderKL(config.vae).apply({"params": params}, z, method="decode"))
        return lambda: jax.block_until_ready(decode(pipe.params["vae"], latent))
    x = rng.standard_normal((2, side, side, config.unet.in_channels), np.float32)  # 2: with guidance
    context = rng.standard_normal((2, config.text.max_length, config.unet.context_dim), np.float32)
    t = jnp.full(2, 500.0)
    step = jax.jit(lambda params, *args: UNet(config.unet).apply({"params": params}, *args))
    return lambda: jax.block_until_ready(step(pipe.params["unet"], x, t, context))


def seconds(run: Callable[[], Any]) -> float:
    """Returns how long a call takes."""
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def work(kind: str, name: str, size: int | None) -> None:
    """A process of one checkout: compiles, then runs once for each line that it reads. Prints a number for each."""
    pipe = model(name)
    run = program(kind, pipe, size or pipe.config.image_size)
    print(seconds(run), flush=True)
    for _ in sys.stdin:
        print(seconds(run), flush=True)


def python(checkout: pathlib.Path) -> str:
    """Returns the interpreter of a checkout."""
    path = checkout.absolute() / ".venv" / "bin" / "python"
    if not path.exists():
        raise SystemExit(f"{path} is missing: run `make .venv/.installed-test` in {checkout}")
    return str(path)


class Worker:
    """A process of one checkout that measures one kind of program."""

    def __init__(self, checkout: pathlib.Path, kind: str, name: str, size: int | None) -> None:
        command = [python(checkout), __file__, "--work", kind, "--model", name]
        command += [] if size is None else ["--size", str(size)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT, cwd=checkout
        )
        self.first = self._read()

    def run(self) -> float:
        """Returns the seconds of one run."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()

    def _read(self) -> float:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._process.args} ended with status {self._process.wait()}")
        return float(line)


def turns(count: int, before: Callable[[], float], after: Callable[[], float]) -> dict[str, list[float]]:
    """Returns the seconds of both, each measured `count` times."""
    out: dict[str, list[float]] = {"before": [], "after": []}
    runs = {"before": before, "after": after}
    for i in range(count):
        for name in ("before", "after") if i % 2 == 0 else ("after", "before"):
            out[name].append(runs[name]())
    return out


def process(checkout: pathlib.Path, *args: str) -> Callable[[], float]:
    """Returns a function that runs a checkout's Python and returns its seconds."""
    command = [python(checkout), *args]

    def run() -> None:
        subprocess.run(command, check=True, env=ENVIRONMENT, cwd=checkout, stdout=subprocess.DEVNULL)

    return lambda: seconds(run)


def training(checkout: pathlib.Path, pictures: pathlib.Path, steps: int) -> Callable[[], float]:
    """Returns a function that trains, and returns the median seconds of an image after the first steps."""
    every = max(steps // 4, 1)
    source = {"source": {"folder": str(pictures)}}
    values = (
        f"optim.steps={steps}", "optim.warmup=0", f"log.every={every}", "log.tensorboard=False", "model.path=builtin",
        "batch_size=16", "data.buckets=False", f"data.parts=[{source}]",
    )  # fmt: skip

    def run() -> float:
        with tempfile.TemporaryDirectory() as folder:
            workdir = pathlib.Path(folder) / "run"
            command = [python(checkout), "-m", "sdjax", "train", "--config", "finetune", "--workdir", str(workdir)]
            command += [word for value in values for word in ("--set", value)]
            subprocess.run(command, check=True, env=ENVIRONMENT, cwd=checkout, capture_output=True)
            lines = [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]
        rates = [line["images_per_second"] for line in lines if "images_per_second" in line]
        return 1 / statistics.median(rates[1:] or rates)  # the first holds the compiling

    return run


def make_pictures(folder: pathlib.Path) -> None:
    """Writes 64 noisy pictures with captions."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for i in range(64):
        Image.fromarray(rng.integers(0, 256, (96, 96, 3)).astype(np.uint8)).save(folder / f"{i}.jpg")
        (folder / f"{i}.txt").write_text(f"picture {i}")


def row(times: dict[str, list[float]]) -> dict[str, Any]:
    """Returns medians, and the median and range of the turns' ratios."""
    ratios = sorted(after / before for before, after in zip(times["before"], times["after"], strict=True))
    return {
        **{name: round(statistics.median(values), 6) for name, values in times.items()},
        "ratio": round(statistics.median(ratios), 4), "range": [round(ratios[0], 4), round(ratios[-1], 4)],
        "turns": len(ratios),
    }  # fmt: skip


def commit(checkout: pathlib.Path) -> str:
    """Returns the commit of a checkout, with a mark where files differ from it."""
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def measure(args: argparse.Namespace, keep: Callable[[str, dict[str, list[float]]], None]) -> None:
    """Measures everything that is asked for, and hands over each result as soon as it is there."""
    checkouts = (args.before, args.after)
    for kind in [kind for kind in KINDS if kind in args.only]:
        compiling: dict[str, list[float]] = {"before": [], "after": []}
        for turn in range(args.compiles):
            order = checkouts if turn % 2 == 0 else checkouts[::-1]
            workers = [Worker(checkout, kind, args.model, args.size) for checkout in order]
            before, after = workers if turn % 2 == 0 else workers[::-1]
            compiling["before"].append(before.first)
            compiling["after"].append(after.first)
            if turn == args.compiles - 1:
                keep(kind, turns(args.turns, before.run, after.run))
            before.close()
            after.close()
        keep(f"{kind}, first run", compiling)
    if "train" in args.only:
        with tempfile.TemporaryDirectory() as folder:
            make_pictures(pathlib.Path(folder))
            runs = [training(checkout, pathlib.Path(folder), args.train_steps) for checkout in checkouts]
            keep("train, seconds an image", turns(args.starts, *runs))
    if "start" in args.only:
        for name, words in (("help", ("-m", "sdjax", "--help")), ("load", ("-c", LOAD))):
            keep(name, turns(args.starts, *(process(checkout, *words) for checkout in checkouts)))


def main() -> None:
    """Measures, prints and writes OUT."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=pathlib.Path, help="a checkout with its .venv")
    parser.add_argument("--after", type=pathlib.Path, default=pathlib.Path(), help="another; default: this folder")
    parser.add_argument("--model", default="builtin", help="builtin, or sd1 and the like; default: %(default)s")
    parser.add_argument("--size", type=int, help="pixels of a side; default: the model's own")
    parser.add_argument("--turns", type=int, default=9, help="of each program; default: %(default)s")
    parser.add_argument("--compiles", type=int, default=3, help="of each program; default: %(default)s")
    parser.add_argument("--starts", type=int, default=5, help="of processes and trainings; default: %(default)s")
    parser.add_argument("--train-steps", type=int, default=80, help="of each training; default: %(default)s")
    parser.add_argument("--only", nargs="+", choices=(*KINDS, "train", "start"), default=[*KINDS, "train", "start"])
    parser.add_argument("--out", type=pathlib.Path, help="a JSON file, written after each result")
    parser.add_argument("--work", choices=KINDS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args.work, args.model, args.size)
        return
    if args.before is None:
        parser.error("--before names the other checkout")
    found: dict[str, Any] = {
        "model": args.model, "size": args.size, "cores": os.cpu_count(), "before": commit(args.before),
        "after": commit(args.after), "seconds": {},
    }  # fmt: skip

    def keep(name: str, times: dict[str, list[float]]) -> None:
        found["seconds"][name] = row(times)
        print(name, json.dumps(found["seconds"][name]), flush=True)
        if args.out:
            args.out.write_text(json.dumps(found, indent=1) + "\n")

    measure(args, keep)


if __name__ == "__main__":
    main()
