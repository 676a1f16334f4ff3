"""A pipeline whose work joins that of other jobs: `Pipeline` with its primitives on the engine's device."""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from sdjax.adapters.style_aligned import StyleAligned
from sdjax.diffusion.conditioning import Conditioning
from sdjax.diffusion.constraint import Constraint, Known
from sdjax.diffusion.guidance import Guidance, Unguided
from sdjax.diffusion.network import UNetNetwork
from sdjax.nn.jax_settings import pinned
from sdjax.pipeline import placement, programs
from sdjax.pipeline.model import Pipeline
from sdjax.pipeline.programs import CHUNK
from sdjax.samplers.noise import MadeNoise
from sdjax.samplers.rows import Rows, chunks
from sdjax.samplers.rule import Linear, Rule, State
from sdjax.serve.engine.device import Device
from sdjax.serve.engine.entries import Entry, kind_of
from sdjax.serve.engine.low_rank import own_lora
from sdjax.typing import Context, Image, Keys, Latent, NewImage, NewMap, Params, TokenIds


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class JoinedPipeline(Pipeline):
    """A pipeline whose sampling shares batches with all others on its `device`.

    The other primitives compute picture by picture, each a call of its own, so that nothing else waits for long. The
    arguments `mesh` and `parallel` have no effect: the device's mesh is used.
    """

    device: Device | None = dataclasses.field(default=None, repr=False)
    _first: placement.Placed = dataclasses.field(default_factory=placement.Placed, init=False, repr=False)

    @classmethod
    def of(cls, pipe: Pipeline, device: Device) -> "JoinedPipeline":
        """Returns a loaded pipeline on a device."""
        names = [field.name for field in dataclasses.fields(Pipeline) if field.init]
        return cls(**{name: getattr(pipe, name) for name in names}, device=device)

    @property
    def _on(self) -> Device:
        assert self.device is not None
        return self.device

    def on(self, mesh: Mesh) -> Params:
        """Returns the parameters on the engine's devices; for a mesh of one of them, its own copy of these."""
        whole = super().on(self._on.mesh)
        if mesh.size > 1 or self._on.mesh.size == 1:
            return whole
        own = functools.partial(_part_on, mesh.devices.flat[0])
        return self._first.get(whole, mesh, lambda tree: jax.tree.map(own, tree))

    def _each(self, count: int, call: Callable[[int], Any], *program: Hashable) -> Any:
        """Returns the joined results of call(i) for every entry i of a batch, each in turn with other work.

        `program` is what the call is compiled for. The first call of a program is made at once, on this thread, so that
        nothing waits for the compiler.
        """
        made = []
        for i in range(count):
            if program in self._on.called:
                made.append(self._on.call(functools.partial(call, i)))
            else:
                made.append(jax.block_until_ready(call(i)))
                self._on.called.add(program)
        if count == 1 and self._on.mesh.size == 1:
            return made[0]
        return jax.device_put(np.concatenate([np.asarray(one) for one in made]))

    def _copies(self, array: Any, i: int) -> Any:
        """Returns entry i of an array, once for every device."""
        if len(array) == 1 and self._on.mesh.size == 1:
            return array
        own = array[i : i + 1]
        return own if self._on.mesh.size == 1 else np.repeat(np.asarray(own), self._on.mesh.size, axis=0)

    def _one(self, made: jax.Array) -> jax.Array:
        """Returns the first entry of what was computed for `_copies`, on the first device.

        The other devices take no part in it: programs in which they wait for each other must not begin on several
        threads at once.
        """
        return made[:1] if self._on.mesh.size == 1 else _part_on(self._on.mesh.devices.flat[0], made)

    def encode_tokens(
        self, ids: TokenIds, *, layers: int | None = None, mesh: Any = None, parallel: str = "jit", exact: bool = False
    ) -> Context:
        """Returns encoded token ids (`Pipeline.encode_tokens`), one text after the other.

        This takes so little that it is done at once, on the job's thread: a short request need not wait for a chunk.
        """
        whole, encode = self._on.mesh, super().encode_tokens
        made = [
            self._one(encode(self._copies(ids, i), layers=layers, mesh=whole, exact=exact)) for i in range(len(ids))
        ]  # fmt: skip
        if len(made) == 1 and whole.size == 1:
            return made[0]
        return jax.device_put(np.concatenate([np.asarray(one) for one in made]))

    def encode_image(
        self, image: Image, *, mesh: Any = None, keys: Keys | None = None, draw: int = 0, seamless: str | None = None,
        made: MadeNoise | None = None, parallel: str = "jit",
    ) -> NewMap:  # fmt: skip
        """Returns the latents of images (`Pipeline.encode_image`)."""
        whole, encode = self._on.mesh, super().encode_image
        keys = None if keys is None else jax.random.key_data(keys)

        def one(i: int) -> Any:
            own = None if keys is None else jax.random.wrap_key_data(self._copies(keys, i), impl="threefry2x32")
            noise = None if made is None else jax.tree.map(lambda a: self._copies(a, i), made)
            own_image = self._copies(image, i)
            return self._one(encode(own_image, mesh=whole, keys=own, draw=draw, seamless=seamless, made=noise))

        program = ("encode", image.shape[1:], self.config.vae, self.dtype, draw, seamless, keys is None, made is None)
        return self._each(len(image), one, *program)

    def decode(
        self, latent: Latent, *, seamless: str | None = None, mesh: Any = None, parallel: str = "jit"
    ) -> NewImage:
        """Returns the images of latents (`Pipeline.decode`)."""
        whole, decode = self._on.mesh, super().decode

        def one(i: int) -> Any:
            return self._one(decode(self._copies(latent, i), seamless=seamless, mesh=whole))

        return self._each(len(latent), one)

    def resize_latent(
        self, latent: Latent, height: int, width: int, method: str, *, seamless: str | None = None, mesh: Any = None,
        parallel: str = "jit",
    ) -> NewMap:  # fmt: skip
        """Returns enlarged latents (`Pipeline.resize_latent`)."""
        whole, resize = self._on.mesh, super().resize_latent

        def one(i: int) -> Any:
            return self._one(resize(self._copies(latent, i), height, width, method, seamless=seamless, mesh=whole))

        return self._each(len(latent), one, "resize", latent.shape[1:], height, width, method, seamless)

    def sampling(
        self, rule: Rule, rows: Rows, x: Latent, keys: Keys, branches: Sequence[Conditioning],
        guidance: Guidance | None = None, *, known: Constraint | None = None, made: MadeNoise | None = None,
        exact: bool = False, mesh: Any = None, parallel: str = "jit", **network: Any,
    ) -> Iterator[tuple[int, State]]:  # fmt: skip
        """Samples from `x` (`Pipeline.sampling`). Every picture is an entry of its own, beside those of other jobs.

        A clip, whose frames depend on each other, pictures that are style aligned, and `exact` sampling are computed by
        themselves, a chunk at a time.
        """
        aligned = any(isinstance(patch, StyleAligned) for patch in network.get("patches") or ())
        if exact or aligned or network.get("frames") is not None:
            yield from self._by_itself(
                rule, rows, x, keys, branches, guidance, known=known, made=made, exact=exact, mesh=mesh, **network
            )
            return
        guidance = Unguided() if guidance is None else guidance
        guidance = jax.tree.map(lambda a: np.broadcast_to(a, (len(x), *np.shape(a)[1:])), guidance)
        entries = [self._entry(i, rule, rows, x, keys, branches, guidance, known, made, network) for i in range(len(x))]
        total = np.size(rows.index, 0)
        for number, states in enumerate(self._on.sampling(entries), 1):
            yield min(number * CHUNK, total), _joined(states, self._on.mesh)

    def _by_itself(self, *args: Any, **options: Any) -> Iterator[tuple[int, State]]:
        steps = super().sampling(*args, **options)

        def following() -> tuple[int, State] | None:
            step = next(steps, None)
            jax.block_until_ready(step)
            return step

        while (step := self._on.call(following)) is not None:
            yield step

    @pinned()
    def _entry(
        self, i: int, rule: Rule, rows: Rows, x: Latent, keys: Keys, whole: Sequence[Conditioning],
        guidance: Guidance, known: Constraint | None, made: MadeNoise | None, network: dict[str, Any],
    ) -> Entry:  # fmt: skip
        """Returns picture i of a batch as an entry, with its state before the first row."""
        mesh, several = self._on.mesh, len(x) > 1

        def pick(tree: Any) -> Any:
            return tree if not several else jax.tree.map(lambda a: a[i : i + 1], tree)

        x, keys, guidance, known, made = map(pick, (x, keys, guidance, known, made))
        branches: tuple[Conditioning, ...] = tuple(map(pick, whole))
        network = {"patches": (), **network}
        patches = tuple(network.pop("patches"))
        shared = tuple(network.pop("shared", None) or [None] * len(patches))
        if mesh.size > 1:
            x, keys, branches, guidance, known = placement.replicate((x, keys, branches, guidance, known), mesh)
        lora, options = None, {**network, "mesh": mesh}
        plain, _ = self.sample_program(rule, x, guidance, **options)
        if isinstance(plain.network, UNetNetwork) and isinstance(rule, Linear):
            lora = own_lora(patches, shared, branches[0].patches, self.params["unet"])
        if lora is not None:
            patches, shared = patches[1:], shared[1:]
            branches = tuple(dataclasses.replace(one, patches=one.patches[1:]) for one in branches)
        program, params = self.sample_program(rule, x, guidance, patches=patches, shared=shared, **options)
        own = jax.tree.map(lambda a: a[:, i : i + 1], rows)
        needed = max(1, int(np.sum(np.asarray(own.active))))
        own = jax.tree.map(lambda a: a[:needed], own)
        parts = [programs.images_first(one) for one in chunks(own, CHUNK)]
        noise = [None if made is None else made.chunk(k * CHUNK, CHUNK) for k in range(len(parts))]
        one_device = placement.make_mesh([mesh.devices.flat[0]])
        begin = placement.compiled(programs.begin, program, one_device, (False,) * 4, "jit")
        state = begin(params, x, branches, guidance)
        alone = not isinstance(rule, Linear)
        others = [dataclasses.replace(one, context=None, context_length=None) for one in branches]
        arrays = (
            state,
            others,
            guidance,
            None if isinstance(known, Known) and not alone else known,  # who has none is given one of this class
            parts[0],
            [one.context is None for one in branches],
        )
        leaves, structure = jax.tree.flatten(arrays)
        shapes = (structure, tuple((np.shape(leaf), str(getattr(leaf, "dtype", type(leaf)))) for leaf in leaves), alone)
        identities = tuple(id(leaf) for leaf in jax.tree.leaves((self.params["unet"], shared)))
        weak = () if self.weak is None else tuple(id(leaf) for leaf in jax.tree.leaves(self.weak.params["unet"]))
        kind = kind_of(program, shapes, (*identities, *weak))
        return Entry(kind, params, lora, parts, state, keys, branches, guidance, known, noise, alone)


def _part_on(device: jax.Device, array: jax.Array) -> jax.Array:
    """Returns the part of an array that lies on a device."""
    return next(shard.data for shard in array.addressable_shards if shard.device == device)


def _joined(states: Sequence[State], mesh: Mesh) -> State:
    """Returns the states of single pictures as that of a batch, on the first device."""
    if len(states) == 1:
        return states[0] if mesh.size == 1 else jax.device_put(states[0], mesh.devices.flat[0])
    return jax.tree.map(lambda *leaves: jax.device_put(np.concatenate([np.asarray(one) for one in leaves])), *states)
