"""A loaded model and its primitives: encode a prompt, encode an image, sample, decode.

`programs.py` has the compiled programs. The tasks in `sdjax.tasks` are short compositions of these primitives.
"""

import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree
from numpy.typing import DTypeLike

from sdjax.adapters.attached import with_rows, without_rows
from sdjax.adapters.delta import Adapter, Strength, merge
from sdjax.adapters.patch import Patch
from sdjax.checks.arguments import dtype_name
from sdjax.checks.hints import Explained, explains_arguments, unknown_attribute
from sdjax.checks.notes import note
from sdjax.config import ModelConfig
from sdjax.convert.bundle import Bundle
from sdjax.diffusion.areas import Areas, in_areas
from sdjax.diffusion.clip import ClipNetwork, FrameWindows
from sdjax.diffusion.conditioning import Conditioning
from sdjax.diffusion.constraint import Constraint
from sdjax.diffusion.denoiser import needs_weak
from sdjax.diffusion.guidance import Guidance, Unguided
from sdjax.diffusion.windows import Windows, make_network
from sdjax.nn.jax_settings import make_keys as make_keys  # imported here too, because users expect it here
from sdjax.nn.jax_settings import pinned
from sdjax.nn.quantised.leaf import is_quantised, quantised_count
from sdjax.pipeline import placement, programs
from sdjax.pipeline.programs import CHUNK
from sdjax.prompts.added_words import AddedWords
from sdjax.prompts.syntax import check_lengths
from sdjax.prompts.tokenizer import Tokenizer
from sdjax.samplers.noise import MadeNoise
from sdjax.samplers.rows import Rows, chunks
from sdjax.samplers.rule import Rule, State
from sdjax.schedule import NoiseSchedule
from sdjax.typing import Context, Image, Keys, Latent, NewImage, NewMap, Params, TokenIds


def cast(params: Params, dtype: DTypeLike) -> Params:
    """Returns the parameters with every floating-point leaf in `dtype`. Leaves of that dtype are not copied.

    Quantised leaves stay quantised, and become `dtype` where they are used.
    """
    kind = jnp.dtype(dtype_name(dtype))

    def one(leaf: Any) -> Any:
        if is_quantised(leaf):
            return leaf.replace(dtype_name=kind.name)
        return leaf.astype(kind, copy=False) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(one, params, is_leaf=is_quantised)


def _over(tree: Params, other: Params) -> Params:
    """Returns the tree with the leaves of another one in place of its own where both have them."""
    out = dict(tree)
    for name, value in other.items():
        out[name] = _over(out[name], value) if isinstance(value, Mapping) and name in out else value
    return out


def with_words(params: Params, words: Mapping[str, np.ndarray], tokenizer: Tokenizer, most: int) -> Params:
    """Returns a text encoder's parameters with the vectors of words behind those that the tokenizer has already.

    Raises ValueError for a word that is there already and for more than `most` vectors of a word.
    """
    if any(len(vectors) > most for vectors in words.values()):
        raise ValueError(f"a word has up to {most} vectors with this text encoder: a chunk of a prompt holds no more")
    added = tokenizer.added if isinstance(tokenizer, AddedWords) else ()
    known = {word.lower() for word, _ in added}
    for word in words:
        if word.lower() in known:
            raise ValueError(f"two embeddings have the name {word!r}: give one of them another name")
        known.add(word.lower())
    return with_rows(params, sum(count for _, count in added), list(words.values()))


def summary(loaded: Any, name: str) -> str:
    """Returns one line about a loaded model: name, source, number of parameters and dtype."""
    leaves = jax.tree.leaves(loaded.params, is_leaf=is_quantised)
    count = sum(math.prod(leaf.shape) for leaf in leaves)
    source = f" from {loaded.source!r}" if loaded.source else ""
    kinds = "".join(f", {kind}" for kind in sorted({leaf.kind for leaf in leaves if is_quantised(leaf)}))
    return f"<{type(loaded).__name__} {name}{source}: {count:,} parameters, {loaded.dtype}{kinds}>"


@dataclasses.dataclass(frozen=True, eq=False)
class Pipeline(metaclass=Explained):
    """A model ready to use: its description, parameters {"unet", "vae", "text"}, tokenizer and compute dtype.

    `source` is where it came from; `notices` are decisions made while loading it. `bundle` (a `sdjax.convert.Bundle`)
    is the content of the checkpoint; `save` also writes its other parts besides parameters. `weak` is a weaker model
    that guides by its faults (`guided_by`); it is not saved.

    Parameters are put on the devices at first use. They are put there again after one was replaced, by
    `dataclasses.replace(pipe, params=...)` or in the tree itself. Do not write into a NumPy array of the tree: such a
    change is not noticed.
    """

    config: ModelConfig
    params: Params
    tokenizer: Tokenizer
    dtype: str = "float32"
    source: str = ""
    notices: tuple[str, ...] = ()
    bundle: Bundle | None = dataclasses.field(default=None, repr=False)
    weak: "Pipeline | None" = dataclasses.field(default=None, repr=False)
    _placed: placement.Placed = dataclasses.field(default_factory=placement.Placed, init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", dtype_name(self.dtype))

    def __repr__(self) -> str:
        return summary(self, self.config.name)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(unknown_attribute(name, dir(type(self))))

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Raises TypeError. Tasks are functions: `sdjax.text_to_image(pipe, prompt)`."""
        raise TypeError("a Pipeline cannot be called; sdjax.text_to_image(pipe, prompt) makes pictures with it")

    @property
    def schedule(self) -> NoiseSchedule:
        """The model's noise schedule."""
        return NoiseSchedule(self.config.schedule)

    def on(self, mesh: Mesh) -> Params:
        """Returns the parameters, whole on every device of the mesh."""
        return self._placed.get(self.params, mesh, lambda params: placement.replicate(params, mesh))

    def guided_by(self, weak: "Pipeline") -> "Pipeline":
        """Returns the pipeline with a weaker model for autoguidance: a smaller one, or one trained for less long.

        Only its UNet is used. Raises ValueError unless it takes the same latents, contexts and labels.
        """
        takes = ("in_channels", "out_channels", "context_dim", "num_classes", "label_dim")
        for name in takes:
            ours, theirs = (getattr(pipe.config.unet, name) for pipe in (self, weak))
            if ours != theirs:
                raise ValueError(f"the weaker model must take the same inputs: its {name} is {theirs}, not {ours}")
        return dataclasses.replace(self, weak=weak)

    @property
    def words(self) -> tuple[str, ...]:
        """The words that have vectors of their own (`with_embeddings`)."""
        return tuple(word for word, _ in self.tokenizer.added) if isinstance(self.tokenizer, AddedWords) else ()

    def with_adapters(self, *adapters: tuple[Adapter, float | Strength]) -> "Pipeline":
        """Returns the pipeline with adapters merged into its parameters, each with its weight.

        An adapter is the `adapter` of what `sdjax.convert.load_adapter` returns. Every parameter is computed in float32
        and rounded once. Quantised kernels that change become arrays of the pipeline's dtype, which a note says; a
        request's `adapters` and tags in prompts keep them. Raises AdapterError if an adapter does not fit the model.
        """
        params = merge(self.params, adapters)
        before, after = (quantised_count(tree) for tree in (self.params, params))
        if after < before:
            note(
                f"{before - after} of the model's {before} quantised kernels are no longer quantised, because an "
                "adapter was merged into them; <lora:NAME> in a prompt keeps them as they are"
            )
        return dataclasses.replace(self, params=params)

    def with_embeddings(self, words: Mapping[str, np.ndarray]) -> "Pipeline":
        """Returns the pipeline with vectors [n, d] for words, such as {"<cat>": vectors}: textual inversion.

        A prompt that has such a word gets the vectors in the place of n tokens (`sdjax.prompts.added_words.AddedWords`
        says how words are found). Raises ValueError for vectors of another width, and for a word that is there already.
        """
        if not words:
            return self
        text = with_words(self.params["text"], words, self.tokenizer, self.config.text.max_length - 2)
        tokenizer = AddedWords.to(self.tokenizer, {word: len(vectors) for word, vectors in words.items()})
        return dataclasses.replace(self, params={**self.params, "text": text}, tokenizer=tokenizer)

    @explains_arguments(task=False)
    def save(
        self,
        path: str | os.PathLike[str],
        *,
        to: str = "auto",
        dtype: str | None = None,
        lossy: bool = False,
        overwrite: bool = False,
    ) -> None:
        """Writes the model: an ldm file if the path ends in .safetensors, else a native folder.

        `to` chooses the layout instead: "ldm", "native" or "diffusers". Tokenizer, default guidance scale and size,
        licence, model card, metadata and other files of the model are written too. Parameters keep the types of the
        loaded checkpoint, not the dtype for computing. Changed parameters keep them too, unless that would round
        them. `dtype` casts all parameters; numbers that it cannot hold are an error, unless `lossy`. A warning names
        parts that the layout cannot store, such as a safety checker in a single file.

        Raises FileExistsError if the path exists and may not be replaced, ValueError if the model cannot be written.
        """
        from sdjax import convert  # not needed to make pictures

        convert.save(
            self.config, without_rows(self.params), path, to=to, tokenizer=self.tokenizer, dtype=dtype,
            like=self.bundle, lossy=lossy, overwrite=overwrite,
        )  # fmt: skip

    @pinned()
    def encode_prompt(
        self, prompts: Sequence[str], *, mesh: Mesh | None = None, parallel: str = "jit", exact: bool = False
    ) -> Context:
        """Returns the encoded prompts, float32 [b, 77, width]. b must be a multiple of the size of `mesh`, if given.

        Texts are taken as they stand; `sdjax.pipeline.contexts` encodes weights and long prompts. A prompt that is too
        long is cut; a `sdjax.checks.notes.Note` shows the part that is left out.
        """
        text = self.config.text
        check_lengths(self.tokenizer, prompts, text.max_length)
        ids = self.tokenizer(prompts, length=text.max_length, pad_token_id=text.pad_token_id)
        return self.encode_tokens(ids, mesh=mesh, parallel=parallel, exact=exact)

    @pinned()
    def encode_tokens(
        self,
        ids: TokenIds,
        *,
        layers: int | None = None,
        mesh: Mesh | None = None,
        parallel: str = "jit",
        exact: bool = False,
    ) -> Context:
        """Returns encoded token ids, float32 [b, n, width]. b must be a multiple of the size of `mesh`, if given.

        `layers` is the number of the text encoder's blocks that are used; None means the model's own number. Raises
        ValueError if the model has fewer.
        """
        text, mesh = self.config.text, placement.fitting_mesh(mesh, len(ids))
        params = self.on(mesh)["text"]
        if layers is not None and layers != text.layers:
            if layers > text.layers:
                params = placement.replicate(cast(_over(self._more_blocks(layers), params), self.dtype), mesh)
            text = dataclasses.replace(text, layers=layers)
        run = self._compiled(programs.encode_text, (text, self.dtype, exact), mesh, (False, True), parallel)
        return run(params, placement.split(ids, mesh))

    def _more_blocks(self, layers: int) -> Params:
        """Returns the parameters of blocks of the checkpoint's text encoder that the model does not use."""
        found = None if self.bundle is None else self.bundle.text_with(layers)
        if found is None:
            raise ValueError(
                f"clip_skip asks for block {layers} of the text encoder; the checkpoint holds {self.config.text.layers}"
            )
        return found

    @pinned()
    def encode_image(
        self, image: Image, *, mesh: Mesh | None = None, keys: Keys | None = None, draw: int = 0,
        seamless: str | None = None, made: MadeNoise | None = None, parallel: str = "jit",
    ) -> NewMap:  # fmt: skip
        """Returns the latent of an image in [-1, 1]: a draw from the posterior with `keys`, or its mean without keys.

        `draw` is the number of the draw, if a task needs several for one picture (the whole, and the part outside a
        mask). With `seamless` "x", "y" or "xy" the picture continues over its edges. `made` is the noise, for one row,
        of images that do not draw it with their keys.
        """
        static = (self._autoencoder(seamless), draw)
        mesh = placement.fitting_mesh(mesh, len(image))
        run = placement.compiled(programs.encode_image, static, mesh, (False, True, True, True), parallel)
        return run(self.on(mesh)["vae"], placement.split(image, mesh), keys, made)

    @pinned()
    def noise(self, keys: Keys, height: int, width: int, *, mesh: Mesh | None = None, parallel: str = "jit") -> Latent:
        """Returns unit normal starting noise for pictures of height x width pixels, float32, one draw per key."""
        vae, mesh = self.config.vae, placement.fitting_mesh(mesh, len(keys))
        shape = (height // vae.factor, width // vae.factor, vae.latent_channels)
        return placement.compiled(programs.noise, shape, mesh, (True,), parallel)(placement.split(keys, mesh))

    @pinned()
    def sample(
        self, rule: Rule, rows: Rows, x: Latent, keys: Keys, branches: Sequence[Conditioning],
        guidance: Guidance | None = None, *, progress: Callable[[int, int], None] | None = None, **how: Any,
    ) -> State:  # fmt: skip
        """Returns the sampler's final state, starting from `x`. See `sampling` for the arguments."""
        for done, state in self.sampling(rule, rows, x, keys, branches, guidance, **how):
            if progress is not None:
                jax.block_until_ready(state)
                progress(done, np.size(rows.index, 0))
        return state

    def sampling(
        self, rule: Rule, rows: Rows, x: Latent, keys: Keys, branches: Sequence[Conditioning],
        guidance: Guidance | None = None, *, patches: Sequence[Patch] = (), shared: Sequence[PyTree] | None = None,
        known: Constraint | None = None, windows: Windows | None = None, seamless: str | None = None,
        frames: FrameWindows | None = None, areas: Areas | None = None, made: MadeNoise | None = None,
        mesh: Mesh | None = None, parallel: str = "jit", exact: bool = False,
    ) -> Iterator[tuple[int, State]]:  # fmt: skip
        """Samples from `x`. After every CHUNK rows it yields the number of rows made so far and the sampler's state.

        One compiled scan of CHUNK rows is called as often as needed. `rows` are those of a batch, [n, b, ...]
        (`samplers.batch`, `samplers.repeat`). `branches` are the conditionings of
        `sdjax.diffusion.denoiser.conditionings_of(guidance)`; without `guidance` there is one. `patches` are added to
        the UNet, with one entry of `shared` arrays each; their per-image arrays are in the conditionings. The part of
        the latent that is `known` is set at the start of every step; call `known.put` on the final latent. With
        `windows` the network is called for overlapping parts of the latent. With `seamless` "x", "y" or "xy" the latent
        continues over its edges. With `frames` the batch is a clip. With `areas` the network sees only a rectangle
        of the latent in some branches of guidance (`sdjax.diffusion.areas`). `made` is the noise of rows that is not
        drawn with `keys`.
        """
        guidance, mesh = Unguided() if guidance is None else guidance, placement.fitting_mesh(mesh, len(x))
        parallel = parallel if frames is None else placement.TOGETHER
        program, params = self.sample_program(
            rule, x, guidance, patches=patches, shared=shared, windows=windows, seamless=seamless, frames=frames,
            areas=areas, mesh=mesh, exact=exact,
        )  # fmt: skip
        inputs = (tuple(branches), jax.tree.map(lambda a: np.broadcast_to(a, (len(x), *np.shape(a)[1:])), guidance))
        begin = self._compiled(programs.begin, program, mesh, (False, True, True, True), parallel)
        state = begin(params, x, *inputs)
        run = self._compiled(programs.sample, program, mesh, programs.SPREAD, parallel)
        total = np.size(rows.index, 0)
        for done, chunk in zip(range(CHUNK, total + CHUNK, CHUNK), chunks(rows, CHUNK), strict=True):
            noise = None if made is None else made.chunk(done - CHUNK, CHUNK)
            state = run(params, programs.images_first(chunk), state, keys, *inputs, known, noise)
            yield min(done, total), state

    def sample_program(
        self, rule: Rule, x: Latent, guidance: Guidance, *, patches: Sequence[Patch] = (),
        shared: Sequence[PyTree] | None = None, windows: Windows | None = None, seamless: str | None = None,
        frames: FrameWindows | None = None, areas: Areas | None = None, mesh: Mesh, exact: bool = False,
    ) -> tuple[programs.SampleProgram, Params]:  # fmt: skip
        """Returns the static description of a sampling program and its parameters. See `sampling` for the arguments."""
        network = make_network(self.config.unet, self.dtype, patches, (x.shape[1], x.shape[2]), windows, seamless)
        network = in_areas(network, areas, patches)
        if frames is not None:
            network = ClipNetwork(network, frames, mesh if mesh.size > 1 else None)
        params = self.on(mesh)["unet"]
        if patches:
            params = {"unet": params, "patches": placement.replicate(tuple(shared or [None] * len(patches)), mesh)}
        other = None
        if self.weak is not None and needs_weak(guidance):
            weak = make_network(self.weak.config.unet, self.weak.dtype, (), (x.shape[1], x.shape[2]), windows, seamless)
            other = weak, self.weak.config.schedule.prediction
            params = {"main": params, "weak": self.weak.on(mesh)["unet"]}
        return programs.SampleProgram(network, self.config.schedule.prediction, rule, exact, other), params

    @pinned()
    def resize_latent(
        self, latent: Latent, height: int, width: int, method: str, *, seamless: str | None = None,
        mesh: Mesh | None = None, parallel: str = "jit",
    ) -> NewMap:  # fmt: skip
        """Returns the latent enlarged for pictures of height x width pixels, by a method of `programs.RESIZES`."""
        static = (height // self.config.vae.factor, width // self.config.vae.factor, method, seamless or "")
        mesh = placement.fitting_mesh(mesh, len(latent))
        return placement.compiled(programs.resize, static, mesh, (True,), parallel)(latent)

    @pinned()
    def decode(
        self, latent: Latent, *, seamless: str | None = None, mesh: Mesh | None = None, parallel: str = "jit"
    ) -> NewImage:
        """Returns the images of latents, float32, about in [-1, 1], not clipped.

        With `seamless` "x", "y" or "xy" the pictures continue over their edges.
        """
        mesh = placement.fitting_mesh(mesh, len(latent))
        run = placement.compiled(programs.decode, self._autoencoder(seamless), mesh, (False, True), parallel)
        return run(self.on(mesh)["vae"], placement.split(latent, mesh))

    def _compiled(
        self, function: Callable, static: Any, mesh: Mesh, batched: tuple[bool, ...], parallel: str
    ) -> Callable:  # fmt: skip
        """Returns the program of a function of `programs` that runs the text encoder or the UNet."""
        return placement.compiled(function, static, mesh, batched, parallel)

    def _autoencoder(self, seamless: str | None) -> programs.VAEProgram:
        return programs.VAEProgram(self.config.vae, self.dtype, seamless or "")
