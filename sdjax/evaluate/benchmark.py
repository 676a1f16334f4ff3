"""Measures a model's speed on this computer: steps per second, text encoding, decoding, compiling, memory."""

import dataclasses
import functools
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sdjax._version import __version__
from sdjax.config import ModelConfig
from sdjax.loading.hub import is_hub_name
from sdjax.nn import param_shapes
from sdjax.nn.jax_settings import pinned
from sdjax.pipeline import placement
from sdjax.pipeline.model import Pipeline, cast, make_keys
from sdjax.prompts.tokenizer import Tokenizer
from sdjax.tasks.text_to_image import text_to_image

FEW, MANY = 5, 15  # steps of two runs; the difference of their times is the time of the steps
PROMPT = "a rocket on a green background"


@dataclasses.dataclass(frozen=True)
class Result:
    """The result for one size and batch. Times are in seconds, medians of several runs.

    `steps_per_second` counts steps of the whole batch with guidance (one step: the network on 2 x batch latents).
    `text` is the time to encode the prompts, `decode` the time to decode the batch. `compile` is the extra time of the
    first run. `peak` is the device's highest memory use so far in bytes; None if the device does not report it.
    """

    size: int
    batch: int
    steps_per_second: float
    text: float
    decode: float
    compile: float
    peak: int | None


def random_model(config: ModelConfig, dtype: str, seed: int = 0) -> Pipeline:
    """Returns a pipeline with random weights. It is as fast as one with trained weights."""
    rng = np.random.default_rng(seed)

    def fill(path: tuple, leaf: Any) -> np.ndarray:
        name = path[-1].key
        if len(leaf.shape) < 2:
            return np.full(leaf.shape, float(name == "scale"), np.float32)
        fan_in = np.prod(leaf.shape[:-1]) if name == "kernel" else leaf.shape[-1]
        return rng.standard_normal(leaf.shape, np.float32) / np.float32(fan_in**0.5)

    params = jax.tree_util.tree_map_with_path(fill, param_shapes(config))
    return Pipeline(config, cast(params, dtype), Tokenizer(), dtype, f"random weights of {config.name}")


@pinned()
def measure(pipe: Pipeline, size: int, batch: int, *, repeats: int = 3, device: jax.Device | None = None) -> Result:
    """Measures DDIM with guidance for pictures of size x size pixels, `batch` at a time."""
    device = jax.local_devices()[0] if device is None else device
    mesh = placement.make_mesh([device])
    latents = pipe.noise(make_keys(range(batch)), size, size, mesh=mesh)

    def picture(steps: int) -> Any:
        return text_to_image(
            pipe, [PROMPT] * batch, seed=list(range(batch)), num_steps=steps, height=size, width=size, devices=[device]
        )  # fmt: skip

    first = _seconds(lambda: picture(FEW))
    runs: list[Callable[[], Any]] = [
        functools.partial(picture, FEW), functools.partial(picture, MANY),
        lambda: pipe.encode_prompt([PROMPT] * batch, mesh=mesh), lambda: pipe.decode(latents, mesh=mesh),
    ]  # fmt: skip
    few, many, text, decode = (statistics.median(_seconds(run) for _ in range(repeats)) for run in runs)
    stats = device.memory_stats() or {}
    rate, compiling = (MANY - FEW) / (many - few), max(first - few, 0.0)
    return Result(size, batch, rate, text, decode, compiling, stats.get("peak_bytes_in_use"))


def _seconds(run: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - begin


def table(pipe: Pipeline, results: Sequence[Result], device: jax.Device) -> str:
    """Returns the results as a Markdown table. The line above it names versions, device, dtype and model."""
    lines = [
        f"sdjax {__version__}, JAX {jax.__version__}, {device_name(device)}, {pipe.dtype}, {model_name(pipe)}",
        "",
        "| size | batch | steps/s | pictures/min, 50 steps | text, s | decode, s | first run, s more | peak |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        minute = 60 * r.batch / (50 / r.steps_per_second + r.text + r.decode)
        peak = "" if r.peak is None else f"{r.peak / 2**30:.2f} GiB"
        lines.append(
            f"| {r.size} x {r.size} | {r.batch} | {r.steps_per_second:.3g} | {minute:.3g} | {r.text:.3g} | "
            f"{r.decode:.3g} | {r.compile:.3g} | {peak} |"
        )
    return "\n".join(lines)


def model_name(pipe: Pipeline) -> str:
    """Returns the model's name: owner/name of a hub repository, or the last part of a file's or folder's path."""
    return pipe.source if is_hub_name(pipe.source) else Path(pipe.source).resolve().name


def device_name(device: jax.Device) -> str:
    """Returns the device's name. For a CPU it is the processor's model and the number of usable cores."""
    if device.platform != "cpu":
        return device.device_kind
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return f"{names[0] if names else platform.processor() or platform.machine()}, {cores} cores"
