"""The memory that a picture needs, from a model's description: programs are compiled, and nothing is allocated."""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.stages import Lowered
from jaxtyping import PyTree

from sdjax.adapters.patch import Context, Interceptor, patched
from sdjax.config import ModelConfig
from sdjax.diffusion.conditioning import Conditioning
from sdjax.diffusion.guidance import ClassifierFree
from sdjax.diffusion.network import UNetNetwork
from sdjax.errors import size
from sdjax.nn import TextEncoder, UNet, param_shapes
from sdjax.nn.jax_settings import pinned
from sdjax.nn.unet import DownBlock
from sdjax.pipeline import placement, programs
from sdjax.pipeline.low_memory import BAND
from sdjax.pipeline.streaming import LAYERS, run_layer
from sdjax.samplers import SAMPLERS, chunks, repeat
from sdjax.schedule import NoiseSchedule
from sdjax.typing import Params

SHARE = 0.9  # of the memory may be planned for: the device's libraries need some
PARTS = {"text encoder": "text", "sampler": "unet", "decoder": "vae"}


@dataclasses.dataclass(frozen=True)
class Use:
    """Bytes of one part of a model: its weights, and what it works with besides."""

    name: str
    weights: int
    working: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """The memory of a picture on one device. `together`: the weights of all parts are in memory at once.

    Its text is a table.
    """

    uses: tuple[Use, ...]
    together: bool

    @property
    def peak(self) -> int:
        """The most bytes at a time."""
        if self.together:
            return sum(use.weights for use in self.uses) + max(use.working for use in self.uses)
        return max(use.weights + use.working for use in self.uses)

    def __str__(self) -> str:
        rows = [("", "weights", "besides")]
        rows += [(use.name, size(use.weights), size(use.working)) for use in self.uses]
        rows.append(("at most" if self.together else "at most, one part at a time", size(self.peak), ""))
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        return "\n".join(
            "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows
        )


@pinned()
def plan(config: ModelConfig, dtype: str, sides: tuple[int, int], *, batch: int = 1, low_memory: bool = False) -> Plan:
    """Returns the memory that `batch` pictures of `sides` (height, width) need at once on JAX's default device.

    They are made with guidance of two branches. With `low_memory`, weights stay in their file
    (`sdjax.pipeline.low_memory`). The programs are compiled for the device, which keeps them for the first picture
    (`sdjax.pipeline.cache`). Python, JAX and the device's own libraries are not counted.
    """
    shapes = param_shapes(config)
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype)), shapes)
    uses: list[Use] = [
        Use(name, nbytes(params[PARTS[name]]), _working(lowered))
        for name, lowered in lowered_programs(config, dtype, sides, params, batch, BAND if low_memory else None)
        if not (low_memory and name in ("text encoder", "sampler"))
    ]
    if low_memory:
        uses = [*_streamed(config, dtype, sides, params, batch), *uses]
    return Plan(tuple(uses), not low_memory)


def room(device: jax.Device) -> int | None:
    """Returns the bytes of a device's memory, of a CPU those that are free; None if the system does not say."""
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit is not None or device.platform != "cpu":
        return limit
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        return None
    return None if found is None else 1024 * int(found[1])


def advice(plan: Plan, dtype: str, batch: int, device: jax.Device) -> list[str]:
    """Returns sentences: whether a plan fits, and if not, what needs less memory."""
    free = room(device)
    if free is None:
        return []
    if plan.peak <= SHARE * free:
        return [f"it fits: there are {size(free)}"]
    ways = [
        *(["--dtype bfloat16"] if dtype == "float32" else []),
        *(["a smaller --n_samples"] if batch > 1 else []),
        *(["--low-memory"] if plan.together else []),
        "smaller --H and --W",
    ]
    return [f"it does not fit, as there are {size(free)}: try {', '.join(ways)}"]


def nbytes(tree: PyTree) -> int:
    """Returns the bytes of a tree of arrays or shapes."""
    return sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree))


def lowered_programs(
    config: ModelConfig, dtype: str, sides: tuple[int, int], params: Params, batch: int = 1, band: int | None = None
) -> Iterator[tuple[str, Lowered]]:
    """Yields a name of PARTS and the lowered program for each that a picture needs. `params` are shapes."""
    mesh = placement.make_mesh(jax.local_devices()[:1])
    text, vae = config.text, config.vae
    ids = jax.ShapeDtypeStruct((batch, text.max_length), jnp.int32)
    run: Any = placement.compiled(programs.encode_text, (text, dtype, False), mesh, (False, True), "jit")
    yield "text encoder", run.lower(params["text"], ids)

    sampler = SAMPLERS["ddim"]()
    latent = _latent(config, sides, batch)
    rows = next(chunks(repeat(sampler.steps(NoiseSchedule(config.schedule), 50), batch), programs.CHUNK))
    concat = config.unet.in_channels - vae.latent_channels
    context: Any = jax.ShapeDtypeStruct((batch, text.max_length, config.unet.context_dim), jnp.float32)
    channels: Any = jax.ShapeDtypeStruct((*latent.shape[:3], concat), jnp.float32) if concat else None
    one = Conditioning(context, concat=channels, label=_label(config, batch))
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch))
    program = programs.SampleProgram(UNetNetwork(config.unet, dtype), config.schedule.prediction, sampler.rule)
    run = placement.compiled(programs.sample, program, mesh, programs.SPREAD, "jit")
    how = (one, one), ClassifierFree(np.full(batch, 7.5, np.float32), np.zeros(batch, np.float32))
    state = jax.eval_shape(functools.partial(programs.begin, program), params["unet"], latent, *how)
    yield "sampler", run.lower(params["unet"], programs.images_first(rows), state, keys, *how, None, None)

    autoencoder = programs.VAEProgram(vae, dtype, band=band)
    run = placement.compiled(programs.decode, autoencoder, mesh, (False, True), "jit")
    yield "decoder", run.lower(params["vae"], latent)


def _latent(config: ModelConfig, sides: tuple[int, int], batch: int) -> jax.ShapeDtypeStruct:
    height, width = (side // config.vae.factor for side in sides)
    return jax.ShapeDtypeStruct((batch, height, width, config.vae.latent_channels), jnp.float32)


def _label(config: ModelConfig, batch: int) -> Any:
    if config.unet.num_classes is not None:
        return jax.ShapeDtypeStruct((batch,), jnp.int32)
    width = config.unet.label_dim
    return None if width is None else jax.ShapeDtypeStruct((batch, width), jnp.float32)


def _working(lowered: Lowered) -> int:
    """Returns the bytes that a program needs besides its arguments."""
    found: Any = lowered.compile().memory_analysis()
    return int(found.temp_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes)


def _streamed(
    config: ModelConfig, dtype: str, sides: tuple[int, int], params: Params, batch: int
) -> list[Use]:  # fmt: skip
    """Returns what text encoder and UNet need layer by layer."""
    text, unet = config.text, config.unet
    ids = jax.ShapeDtypeStruct((batch, text.max_length), jnp.int32)
    latent = _latent(config, sides, 2 * batch)
    x = jax.ShapeDtypeStruct((*latent.shape[:3], unet.in_channels), jnp.float32)
    times = jax.ShapeDtypeStruct((2 * batch,), jnp.float32)
    context = jax.ShapeDtypeStruct((2 * batch, text.max_length, unet.context_dim), jnp.float32)
    label = _label(config, 2 * batch)
    guidance = None if unet.guidance_dim is None else times
    return [
        _of_layers("text encoder", TextEncoder(text, jnp.dtype(dtype)).apply, params["text"], ids),
        _of_layers("sampler", UNet(unet, jnp.dtype(dtype)).apply, params["unet"], x, times, context, label, guidance),
    ]


def _of_layers(name: str, apply: Callable[..., Any], params: Params, *args: Any) -> Use:
    """Returns the memory of a network that runs layer by layer: two layers' weights, the largest program, the skips."""
    layers = Layers()
    with patched([layers], everywhere=True):
        jax.eval_shape(apply, {"params": params}, *args)
    found = layers.found.values()
    most = max(nbytes(given[1:]) + _working(run_layer.lower(layer, *given)) for layer, given in found)
    return Use(name, 2 * max(nbytes(given[0]) for _, given in found), most + layers.skips)


class Layers:
    """A patch that notes each layer with the shapes of its parameters and arguments, and the bytes of skips."""

    def __init__(self) -> None:
        self.found: dict[str, tuple[nn.Module, tuple[Any, ...]]] = {}
        self.skips = 0

    def intercept(self, shared: None = None, own: None = None) -> Interceptor:
        """Returns the interceptor, which changes nothing."""

        def intercept(
            method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: Context
        ) -> Any:
            layer, out = context.module, method(*args, **kwargs)
            if isinstance(layer, DownBlock):
                self.skips += nbytes(out[1])
            if isinstance(layer, LAYERS):
                given = dict(layer.variables.get("params", {})), args, kwargs
                given = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), given)
                alone = layer.clone(parent=None, name=None)
                self.found.setdefault(str((alone, given)), (alone, given))
            return out

        return intercept
