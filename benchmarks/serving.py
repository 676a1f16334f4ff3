"""The engine of the server under 16 clients with mixed settings, beside one picture after the other.

    python benchmarks/serving.py --out benchmarks/results/serving_cpu.json
    python benchmarks/serving.py --out benchmarks/results/serving_cpu.json --diffusers PYTHON   # beside diffusers too

Every client asks for a picture, waits for it and asks for the next one. Samplers, numbers of steps, scales, prompts and
seeds differ. "one by one" is the same engine with one slot, "diffusers" the same model, converted, in a Python with the
pinned diffusers of the extra `benchmark`, one call after the other with its nearest schedulers. The short request has
two steps and comes while the slots are full of long ones. All programs are compiled before the clocks start. Seconds of
the processor count where other programs run on the computer too.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

import jax

import sdjax
from sdjax.evaluate.benchmark import device_name
from sdjax.serve.engine import Engine, Work

SAMPLERS = {  # and diffusers' schedulers
    "ddim": "DDIM", "euler_ancestral": "EulerAncestralDiscrete", "dpmpp_2m": "DPMSolverMultistep",
    "heun": "HeunDiscrete", "euler": "EulerDiscrete", "lms": "LMSDiscrete",
}  # fmt: skip
PROMPTS = ["a cat", "a rocket on a green background", "a red apple", "a small dog in the snow, at night, smiling"]


class BuiltIn:
    """A library with one checkpoint."""

    def __init__(self, name: str) -> None:
        self.name, self.path = name, pathlib.Path(name)

    def find(self, kind: str, name: str) -> "BuiltIn":
        """Returns the checkpoint."""
        if (kind, name) != ("checkpoint", self.name):
            raise ValueError(f"there is no {kind} {name}")
        return self

    def entries(self, kind: str) -> list["BuiltIn"]:
        """Returns the checkpoint."""
        return [self] if kind == "checkpoint" else []

    def folder(self, kind: str) -> None:
        """Returns no folder."""


def settings(number: int) -> dict[str, Any]:
    """Returns the settings of request `number`."""
    names = list(SAMPLERS)
    return {
        "prompt": PROMPTS[number % len(PROMPTS)], "seed": number, "sampler": names[number % len(names)],
        "num_steps": 8 + 3 * (number % 7), "guidance_scale": 3.0 + number % 5,
    }  # fmt: skip


def ask(engine: Engine, count: int, clients: int) -> tuple[float, list[float]]:
    """Returns the seconds that `count` requests of so many clients take, and the seconds of each request."""
    numbers, seconds, lock = iter(range(count)), [], threading.Lock()

    def client(name: int) -> None:
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            start = time.perf_counter()
            job = engine.submit(Work("txt2img", settings(number), client=str(name), save=False))
            job.wait()
            if job.state != "done":
                raise RuntimeError(job.error)
            seconds.append(time.perf_counter() - start)

    threads = [threading.Thread(target=client, args=(name,)) for name in range(clients)]
    start = time.perf_counter()
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    return time.perf_counter() - start, seconds


def short_while_long(engine: Engine, slots: int) -> dict[str, float]:
    """Returns the seconds of a request of two steps alone, and while all other slots draw 500 steps each."""

    def short() -> float:
        start = time.perf_counter()
        engine.submit(Work("txt2img", {"prompt": "a cat", "num_steps": 2}, client="short", save=False)).wait()
        return time.perf_counter() - start

    alone = statistics.median(short() for _ in range(3))
    long = {"prompt": "a cat", "num_steps": 500}
    jobs = [engine.submit(Work("txt2img", long, client="long", save=False)) for _ in range(slots - 1)]
    while any(not job.done for job in jobs):
        time.sleep(0.01)
    among = statistics.median(short() for _ in range(3))
    running = sum(job.state == "running" for job in jobs)
    engine.cancel_all()
    return {"alone": alone, "among_long_ones": among, "long_ones_running": running}


def serve(model: str, slots: int, work: Any) -> Any:
    """Returns work(engine) with an engine whose programs are compiled."""
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)
        engine = Engine(
            BuiltIn(model), model=model, outputs=place / "o", state=place / "s", slots=slots, waiting=1000,  # type: ignore[arg-type]
            devices=jax.devices()[:1],
        )  # fmt: skip
        engine.warm_up()
        engine.warmed.wait()
        try:
            return work(engine)
        finally:
            engine.close()


def counted(run: Any) -> tuple[Any, int]:
    """Returns the result of run(), and how many programs JAX compiled meanwhile."""
    compiled: list[str] = []

    def count(event: str, seconds: float, **_: Any) -> None:
        if event.endswith("backend_compile_duration"):
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(count)
    return run(), len(compiled)


def many(engine: Engine, count: int, clients: int, slots: int) -> dict[str, Any]:
    """Returns the figures of many clients."""
    ask(engine, 6, 1)  # every sampler once
    before = time.process_time()
    (seconds, each), compilations = counted(lambda: ask(engine, count, clients))
    processor = time.process_time() - before
    chunks = engine.device.measured.chunks
    return {
        "requests": count, "seconds": seconds, "processor_seconds": processor,
        "pictures_per_second": count / seconds, "processor_seconds_per_picture": processor / count,
        "median_seconds": statistics.median(each),
        "slowest_seconds": max(each), "compilations": compilations,
        "pictures_in_a_chunk": {str(size): times for size, times in sorted(chunks.items())},
        "short": short_while_long(engine, slots),
    }  # fmt: skip


PEER = """
import json, sys, time
import torch, diffusers
folder, count = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(int(sys.argv[3]))
pipe = diffusers.StableDiffusionPipeline.from_pretrained(
    folder, safety_checker=None, local_files_only=True, torch_dtype=torch.float32)
pipe.set_progress_bar_config(disable=True)
asked = json.load(sys.stdin)
def one(s):
    pipe.scheduler = getattr(diffusers, s["scheduler"] + "Scheduler").from_config(pipe.scheduler.config)
    pipe(s["prompt"], num_inference_steps=s["num_steps"], guidance_scale=s["guidance_scale"],
         height=s["side"], width=s["side"], generator=torch.Generator().manual_seed(s["seed"]))
for s in asked[:6]:
    one(s)
start, before = time.perf_counter(), time.process_time()
for s in asked:
    one(s)
seconds, processor = time.perf_counter() - start, time.process_time() - before
print(json.dumps({"seconds": seconds, "processor_seconds": processor, "torch": torch.__version__,
                  "diffusers": diffusers.__version__}))
"""


def peer(python: str, model: str, count: int, threads: int) -> dict[str, Any]:
    """Returns the figures of diffusers with the same model, one call after the other."""
    pipe = sdjax.load(model)
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder) / "model"
        pipe.save(place, to="diffusers")
        asked = [
            {**settings(n), "scheduler": SAMPLERS[settings(n)["sampler"]], "side": pipe.config.image_size}
            for n in range(count)
        ]
        command = [python, "-c", PEER, str(place), str(count), str(threads)]
        done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.strip().splitlines()[-1])
    found["processor_seconds_per_picture"] = found["processor_seconds"] / count
    return {"requests": count, **found, "pictures_per_second": count / found["seconds"]}


def main() -> None:
    """Measures and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--count", type=int, default=48, help="requests")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--peer-count", type=int, default=48, help="requests of diffusers")
    parser.add_argument("--threads", type=int, default=2, help="threads of diffusers")
    parser.add_argument("--diffusers", metavar="PYTHON", help="a Python with diffusers")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    figures: dict[str, Any] = {
        "device": device_name(jax.devices()[0]), "jax": jax.__version__, "sdjax": sdjax.__version__,
        "model": args.model,
        "requests": args.count, "clients": args.clients, "slots": args.slots,
    }  # fmt: skip
    parts: dict[str, Callable[[], Any]] = {
        "together": lambda: serve(args.model, args.slots, lambda e: many(e, args.count, args.clients, args.slots)),
        "one by one": lambda: serve(args.model, 1, lambda e: many(e, args.count, args.clients, 1)),
    }
    if args.diffusers:
        parts["diffusers"] = lambda: peer(args.diffusers, args.model, args.peer_count, args.threads)
    for name, measure in parts.items():
        figures[name] = measure()
        pathlib.Path(args.out).write_text(json.dumps(figures, indent=1) + "\n")
        print(name, json.dumps(figures[name], indent=1), flush=True)


if __name__ == "__main__":
    main()
