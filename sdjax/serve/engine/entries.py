"""Pictures that are being sampled, one entry each, and the compiled program that advances several of them at once.

Entries of one `Kind` share a program: the same network, size and structure. What may differ is an array. A part of the
latent that is known, noise that the host made, low-rank adapters and prompts of other lengths are filled up with
arrays without effect, so that pictures with and without them share a program too.
"""

import dataclasses
import functools
import queue
from collections.abc import Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sdjax.adapters.lora import LoRA
from sdjax.diffusion.conditioning import Conditioning
from sdjax.diffusion.constraint import Constraint, Known
from sdjax.diffusion.guidance import Guidance
from sdjax.pipeline import placement, programs
from sdjax.samplers.noise import MadeNoise
from sdjax.samplers.rows import Rows
from sdjax.samplers.rule import State
from sdjax.serve.engine.low_rank import OwnLoRA, filled
from sdjax.typing import Keys, Params


@dataclasses.dataclass(frozen=True, eq=False)
class Kind:
    """What entries that are advanced together have in common. `kind_of` makes it: equal kinds are one object.

    `program` is without a low-rank adapter. `shapes` are those of the arrays besides contexts. `shared` are the
    identities of the model's and the patches' arrays.
    """

    program: programs.SampleProgram
    shapes: Hashable
    shared: tuple[int, ...]


@functools.lru_cache(maxsize=1024)
def kind_of(program: programs.SampleProgram, shapes: Hashable, shared: tuple[int, ...]) -> Kind:
    """Returns the kind of entries with these in common."""
    return Kind(program, shapes, shared)


@dataclasses.dataclass(eq=False)
class Entry:
    """A picture that is being sampled. All arrays have a first axis of 1.

    `params` are those of the program without a low-rank adapter, `lora` the picture's own. `chunks` are the rows,
    CHUNK at a time, and `made` their noise. `owner` is the job.
    """

    kind: Kind
    params: Params
    lora: OwnLoRA | None
    chunks: list[Rows]
    state: State
    keys: Keys
    branches: tuple[Conditioning, ...]
    guidance: Guidance
    known: Constraint | None
    made: list[MadeNoise | None]
    alone: bool = False  # the sampler's rule takes no filling
    owner: str = ""
    at: int = 0
    served: float = 0.0
    left: bool = False
    results: "queue.SimpleQueue[State | BaseException]" = dataclasses.field(default_factory=queue.SimpleQueue)
    _stretched: dict[tuple[int, int], tuple[Conditioning, ...]] = dataclasses.field(default_factory=dict)

    @property
    def next(self) -> int:
        """The number of the next chunk; of the last one after it."""
        return min(self.at, len(self.chunks) - 1)

    @property
    def length(self) -> int:
        """The number of tokens of the longest context; 0 if all contexts are whole and of one length."""
        contexts = [one for one in self.branches if one.context is not None]
        lengths = {one.context.shape[-2] for one in contexts}  # type: ignore[union-attr]
        if len(lengths) <= 1 and all(one.context_length is None for one in contexts):
            return 0
        return max(lengths)

    @property
    def widest(self) -> int:
        """The number of tokens of the longest context."""
        return max((one.context.shape[-2] for one in self.branches if one.context is not None), default=0)

    @property
    def stages(self) -> int:
        """The number of prompts that follow each other while sampling; 0 if there is one."""
        return max((one.context.shape[1] for one in self.branches if one.context is not None and one.context.ndim == 4),
                   default=0)  # fmt: skip

    def conditionings(self, length: int, stages: int) -> tuple[Conditioning, ...]:
        """Returns the branches with contexts of this length and number of stages; 0 leaves them as they are."""
        if (length, stages) not in self._stretched:
            self._stretched[length, stages] = tuple(stretched(one, length, stages) for one in self.branches)
        return self._stretched[length, stages]


def stretched(one: Conditioning, length: int, stages: int) -> Conditioning:
    """Returns the conditioning with its context padded to `length` tokens and repeated to `stages` stages."""
    if one.context is None or not (length or stages):
        return one
    context = np.asarray(one.context)
    valid = None if one.context_length is None else np.asarray(one.context_length)
    if stages and context.ndim == 3:
        context = context[:, None]
        valid = None if valid is None else valid[:, None]
    if stages:
        missing = stages - context.shape[1]
        context = np.concatenate([context, np.repeat(context[:, -1:], missing, 1)], 1)
        valid = None if valid is None else np.concatenate([valid, np.repeat(valid[:, -1:], missing, 1)], 1)
    if length:
        if valid is None:
            valid = np.full(context.shape[:-2], context.shape[-2], np.int32)
        padding = [(0, 0)] * (context.ndim - 2) + [(0, length - context.shape[-2]), (0, 0)]
        context = np.pad(context, padding)
    return dataclasses.replace(
        one, context=jax.device_put(context), context_length=None if valid is None else jax.device_put(valid)
    )


def power(count: int) -> int:
    """Returns the smallest power of two that is at least `count`."""
    return 1 << max(count - 1, 0).bit_length()


def arguments(
    entries: Sequence[Entry], size: int, length: int, stages: int, rank: int
) -> tuple[Params, Rows, tuple[Any, ...], MadeNoise | None]:
    """Returns the arguments of the program that advances entries of one kind by their next chunk.

    Their number is filled up to `size` with copies of the last one.
    """
    first, whole = entries[0], [*entries, *[entries[-1]] * (size - len(entries))]
    lora = next((one.lora for one in entries if one.lora is not None), None)
    parts = [_arrays(one, length, stages, rank, lora) for one in whole]
    rows = jax.tree.map(lambda *leaves: np.concatenate(leaves), *(one.chunks[one.next] for one in whole))
    made = None
    if not first.alone or first.made[first.next] is not None:
        made = jax.tree.map(lambda *leaves: np.concatenate(leaves), *(_noise(one) for one in whole))
    return first.params if lora is None else lora_params(first.params), rows, tuple(parts), made


def common_contexts(entries: Sequence[Entry]) -> tuple[int, int]:
    """Returns the length of contexts and the number of stages that all entries can have.

    Both are 0 if all entries are alike without filling. Else they are powers of two (of chunks of tokens), so that few
    programs are needed.
    """
    widths, lengths = {one.widest for one in entries}, {one.length for one in entries}
    length = 0
    if lengths != {0} or len(widths) > 1:
        chunk = min(widths)
        length = power(-(-max(widths) // chunk)) * chunk
    stages = max(one.stages for one in entries)
    return length, power(stages) if stages else 0


def _arrays(
    one: Entry, length: int, stages: int, rank: int, lora: OwnLoRA | None
) -> tuple[State, Keys, tuple[Conditioning, ...], Guidance, Constraint | None]:
    branches = one.conditionings(length, stages)
    if lora is not None:
        own = filled(one.lora, lora, rank)
        branches = tuple(dataclasses.replace(each, patches=(own, *each.patches)) for each in branches)
    known = one.known
    if known is None and not one.alone:
        known = nothing_known(one.state.x.shape)
    return one.state, one.keys, branches, one.guidance, known


@functools.lru_cache(maxsize=32)
def nothing_known(shape: tuple[int, ...]) -> Known:
    """Returns a known part without any entry, which changes nothing."""
    return Known(jnp.zeros(shape, jnp.float32), jnp.zeros((*shape[:-1], 1), bool))


def _noise(one: Entry) -> MadeNoise:
    made = one.made[one.next]
    if made is not None:
        return jax.tree.map(np.asarray, made)
    return no_noise(one.state.x.shape)


@functools.lru_cache(maxsize=32)
def no_noise(shape: tuple[int, ...]) -> MadeNoise:
    """Returns noise of a chunk that no picture uses."""
    return MadeNoise(np.zeros((1, programs.CHUNK, *shape[1:]), np.float32), np.zeros(1, bool))


def with_lora(program: programs.SampleProgram) -> programs.SampleProgram:
    """Returns the program of a network that takes a low-rank adapter for each picture, before all other patches."""
    network: Any = program.network
    return dataclasses.replace(program, network=dataclasses.replace(network, patches=(LoRA(), *network.patches)))


def lora_params(params: Params) -> Params:
    """Returns the parameters of `with_lora`: one more entry of shared arrays, without any."""
    if "main" in params:
        return {**params, "main": lora_params(params["main"])}
    if "patches" in params:
        return {**params, "patches": (None, *params["patches"])}
    return {"unet": params, "patches": (None,)}


@functools.lru_cache(maxsize=256)
def compiled(program: programs.SampleProgram, mesh: Mesh, size: int) -> Any:
    """Returns the function (params, rows, parts, made) -> states that advances `size` entries by a chunk of rows."""
    sample: Any = functools.partial(programs.sample, program)
    if mesh.size > 1:
        sample = placement.over_batch(sample, mesh, programs.SPREAD)

    def run(params: Params, rows: Rows, parts: tuple[Any, ...], made: MadeNoise | None) -> tuple[State, ...]:
        state, *rest = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
        out = sample(params, rows, state, *rest, made)
        return tuple(jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], out) for i in range(size))

    return jax.jit(run)
