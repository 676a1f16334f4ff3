"""A loaded model and its primitives: encode a prompt, encode an image, sample, decode.

Every compiled program is a module-level function of (what it is compiled for, parameters, arrays): parameters are
arguments, never closed over, and only shapes, sampler and model description are static. The tasks of
`sdjax.tasks` are short compositions of these primitives.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sdjax.checks.arguments import dtype_name
from sdjax.checks.hints import Explained, explains_arguments, unknown_attribute
from sdjax.config import ModelConfig, TextConfig, UNetConfig, VAEConfig
from sdjax.convert.bundle import Bundle
from sdjax.diffusion import denoiser
from sdjax.diffusion.constraint import Known
from sdjax.diffusion.denoiser import Conditioning
from sdjax.nn import AutoencoderKL, TextEncoder, UNet, latent_from_moments
from sdjax.nn.jax_settings import make_keys as make_keys  # where everybody looks for it
from sdjax.nn.jax_settings import pinned
from sdjax.pipeline import placement, tiling
from sdjax.prompts.syntax import check_lengths
from sdjax.prompts.tokenizer import Tokenizer
from sdjax.samplers import base
from sdjax.schedule import NoiseSchedule
from sdjax.typing import Context, Image, Key, Latent, Params, TokenIds

CHUNK = 5  # rows of one compiled scan; the host calls it as often as the sampler has rows (see docs/design.md)


@dataclasses.dataclass(frozen=True)
class SampleProgram:
    """What a compiled sampling program depends on besides shapes; nothing else recompiles it."""

    unet: UNetConfig
    prediction: str
    dtype: str
    rule: Any
    guided: bool
    exact: bool


def default_dtype() -> str:
    """Returns the compute dtype used where none is asked for: float32 on CPU, bfloat16 on accelerators."""
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def cast(params: Params, dtype: Any) -> Params:
    """Returns the parameters with every floating-point leaf in `dtype`; those in it already are not copied."""
    kind = jnp.dtype(dtype_name(dtype))
    return jax.tree.map(lambda a: a.astype(kind, copy=False) if jnp.issubdtype(a.dtype, jnp.floating) else a, params)


def summary(loaded: Any, name: str) -> str:
    """Returns one line about something loaded: the network's name, its size, dtype and source."""
    count = sum(math.prod(np.shape(leaf)) for leaf in jax.tree.leaves(loaded.params))
    source = f" from {loaded.source!r}" if loaded.source else ""
    return f"<{type(loaded).__name__} {name}{source}: {count:,} parameters, {loaded.dtype}>"


def one_by_one(function: Callable, *batched: Any) -> Any:
    """Returns `function` of a batch, computed for one entry after the other: entry i never depends on the others."""
    return jax.tree.map(
        lambda a: a[:, 0], jax.lax.map(lambda entry: function(*jax.tree.map(lambda a: a[None], entry)), batched)
    )


def _encode_text(static: tuple[TextConfig, str, bool], params: Params, ids: TokenIds) -> Context:
    config, dtype, exact = static
    apply = lambda ids: TextEncoder(config, jnp.dtype(dtype)).apply({"params": params}, ids)  # noqa: E731
    return one_by_one(apply, ids) if exact else apply(ids)


def _encode_image(static: tuple[VAEConfig, str, int], params: Params, image: Image, keys: Key | None) -> Latent:
    config, dtype, draw = static
    vae = AutoencoderKL(config, jnp.dtype(dtype))
    moments = one_by_one(lambda image: vae.apply({"params": params}, image, method="encode"), image)
    b, h, w, c = moments.shape
    noise = None if keys is None else base.draw_noise(keys, base.POSTERIOR, draw, (h, w, c // 2))
    return latent_from_moments(moments, noise, config.scale_factor)


def _decode(static: tuple[VAEConfig, str], params: Params, latent: Latent) -> Image:
    config, dtype = static
    vae = AutoencoderKL(config, jnp.dtype(dtype))

    def decode(latent: Latent) -> Image:
        if latent.shape[1] * latent.shape[2] * config.factor**2 > tiling.LARGE:
            return tiling.decode(config, jnp.dtype(dtype), params, latent)
        return vae.apply({"params": params}, latent, method="decode")

    # One at a time: a decoder's feature maps are gigabytes, and one picture keeps a device busy
    return one_by_one(decode, latent)


def _noise(shape: tuple[int, ...], keys: Key) -> Latent:
    return base.draw_noise(keys, base.START, 0, shape)


def _resize(static: tuple[int, int, str], latent: Latent) -> Latent:
    height, width, method = static
    return jax.image.resize(latent, (latent.shape[0], height, width, latent.shape[-1]), method)


def _init(rule: base.Rule, x: Latent) -> Any:
    return rule.init(x)


def _sample(
    program: SampleProgram, params: Params, rows: base.Steps, scale: jax.Array, state: Any, keys: Key,
    conditioning: Conditioning, unconditional: Conditioning | None, known: Known | None = None,
) -> Any:  # fmt: skip
    """Returns the sampler's state after `rows`: the one program in which the network runs."""
    network = UNet(program.unet, jnp.dtype(program.dtype))

    def run(
        state: Any, keys: Key, conditioning: Conditioning, unconditional: Conditioning | None, known: Known | None
    ) -> Any:
        def apply(x: Latent, t: jax.Array, context: Context, label: jax.Array | None) -> Latent:
            return network.apply({"params": params}, x, t, context, label)

        denoise = denoiser.make_denoiser(
            apply, program.prediction, conditioning, unconditional=unconditional, guidance_scale=scale
        )
        if known is None:
            return base.scan_rows(program.rule, denoise, state, rows, keys)
        return base.scan_rows(program.rule, known.answer(denoise), state, rows, keys, known.constrain(keys))

    if program.exact:
        return one_by_one(run, state, keys, conditioning, unconditional, known)
    return run(state, keys, conditioning, unconditional, known)


@dataclasses.dataclass(frozen=True, eq=False)
class Pipeline(metaclass=Explained):
    """A model ready to use: its description, parameters {"unet", "vae", "text"}, tokenizer and compute dtype.

    `source` says where it came from, `notices` what was decided while loading it. `bundle` is what the checkpoint held,
    a `sdjax.convert.Bundle`: `save` also writes what it has besides parameters. Parameters are put on the devices once,
    at first use, and again after one of them was replaced: by `dataclasses.replace(pipe, params=...)`, or in the tree
    itself. Do not write into a NumPy array of the tree: that is not seen.
    """

    config: ModelConfig
    params: Params
    tokenizer: Tokenizer
    dtype: str = "float32"
    source: str = ""
    notices: tuple[str, ...] = ()
    bundle: Bundle | None = dataclasses.field(default=None, repr=False)
    _placed: placement.Placed = dataclasses.field(default_factory=placement.Placed, init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", dtype_name(self.dtype))

    def __repr__(self) -> str:
        return summary(self, self.config.name)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(unknown_attribute(name, dir(type(self))))

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Raises TypeError: the tasks are functions, as `sdjax.text_to_image(pipe, prompt)`."""
        raise TypeError("a Pipeline is not called; sdjax.text_to_image(pipe, prompt) makes pictures with it")

    @property
    def schedule(self) -> NoiseSchedule:
        """The model's noise schedule."""
        return NoiseSchedule(self.config.schedule)

    def on(self, mesh: Mesh) -> Params:
        """Returns the parameters, whole on every device of the mesh."""
        return self._placed.get(self.params, mesh, lambda params: placement.replicate(params, mesh))

    @explains_arguments(task=False)
    def save(
        self, path: Any, *, to: str = "auto", dtype: str | None = None, lossy: bool = False, overwrite: bool = False
    ) -> None:
        """Writes the model: an ldm file for a name that ends in .safetensors, else a native folder.

        `to` says otherwise: "ldm", "native" or "diffusers". Tokenizer, default guidance scale and size, licence, model
        card, metadata and what else came with the model go along. Parameters are written in the types that they are
        stored in, not in the one that is computed in; those that were changed since too, unless that would round them.
        `dtype` casts all; numbers that it cannot hold are an error, unless `lossy`. What the layout has no place for, a
        safety checker in a single file, is warned of.

        Raises FileExistsError where something may not be replaced, ValueError for what cannot be written.
        """
        from sdjax import convert  # not needed to make pictures

        convert.save(
            self.config, self.params, path, to=to, tokenizer=self.tokenizer, dtype=dtype, like=self.bundle,
            lossy=lossy, overwrite=overwrite,
        )  # fmt: skip

    @pinned()
    def encode_prompt(
        self, prompts: Sequence[str], *, mesh: Mesh, parallel: str = "jit", exact: bool = False
    ) -> Context:
        """Returns the encoded prompts, float32 [b, 77, width]; b is a multiple of the mesh's size.

        What is too long is cut, and a `sdjax.checks.notes.Note` says what is left out.
        """
        text = self.config.text
        check_lengths(self.tokenizer, prompts, text.max_length)
        ids = self.tokenizer(prompts, length=text.max_length, pad_token_id=text.pad_token_id)
        run = placement.compiled(_encode_text, (text, self.dtype, exact), mesh, (False, True), parallel)
        return run(self.on(mesh)["text"], placement.split(ids, mesh))

    @pinned()
    def encode_image(
        self, image: Image, *, mesh: Mesh, keys: Key | None = None, draw: int = 0, parallel: str = "jit"
    ) -> Latent:
        """Returns the latent of an image in [-1, 1]: a draw from the posterior by `keys`, its mean without them.

        `draw` numbers the draws of one picture, as of the whole and of its part outside a mask.
        """
        static = (self.config.vae, self.dtype, draw)
        run = placement.compiled(_encode_image, static, mesh, (False, True, True), parallel)
        return run(self.on(mesh)["vae"], placement.split(image, mesh), keys)

    @pinned()
    def noise(self, keys: Key, height: int, width: int, *, mesh: Mesh, parallel: str = "jit") -> Latent:
        """Returns unit normal starting noise for pictures of height x width pixels, float32, one draw a key."""
        vae = self.config.vae
        shape = (height // vae.factor, width // vae.factor, vae.latent_channels)
        return placement.compiled(_noise, shape, mesh, (True,), parallel)(placement.split(keys, mesh))

    @pinned()
    def sample(
        self, sampler: base.Sampler, rows: base.Steps, x: Latent, keys: Key, conditioning: Conditioning,
        unconditional: Conditioning | None = None, guidance_scale: float = 1.0,
        *, progress: Callable[[int, int], None] | None = None, **how: Any,
    ) -> Any:  # fmt: skip
        """Returns the sampler's final state from `x`; `sampling` has the other arguments."""
        for done, state in self.sampling(sampler, rows, x, keys, conditioning, unconditional, guidance_scale, **how):
            if progress is not None:
                jax.block_until_ready(state)
                progress(done, len(rows.timestep))
        return state

    def sampling(
        self, sampler: base.Sampler, rows: base.Steps, x: Latent, keys: Key, conditioning: Conditioning,
        unconditional: Conditioning | None = None, guidance_scale: float = 1.0, *, known: Known | None = None,
        mesh: Mesh, parallel: str = "jit", exact: bool = False,
    ) -> Iterator[tuple[int, Any]]:  # fmt: skip
        """Yields the number of rows made and the sampler's state, from `x`, after every CHUNK rows.

        One compiled scan of CHUNK rows is called as often as needed. `unconditional` None switches guidance off: the
        network then runs once a row instead of twice. What is `known` of the latent is held fixed at every step's
        start; the last step's end is for `known.put`.
        """
        unet, prediction = self.config.unet, self.config.schedule.prediction
        program = SampleProgram(unet, prediction, self.dtype, sampler.rule, unconditional is not None, exact)
        batched = (False, False, False, True, True, True, True, True)
        run = placement.compiled(_sample, program, mesh, batched, parallel)
        params, scale = self.on(mesh)["unet"], jnp.float32(guidance_scale)
        state = placement.compiled(_init, sampler.rule, mesh, (True,), parallel)(x)
        total = len(rows.timestep)
        for done, chunk in zip(range(CHUNK, total + CHUNK, CHUNK), base.chunks(rows, CHUNK), strict=True):
            state = run(params, chunk, scale, state, keys, conditioning, unconditional, known)
            yield min(done, total), state

    @pinned()
    def resize_latent(
        self, latent: Latent, height: int, width: int, method: str, *, mesh: Mesh, parallel: str = "jit"
    ) -> Latent:
        """Returns the latent enlarged for pictures of height x width pixels, by a method of `jax.image.resize`."""
        static = (height // self.config.vae.factor, width // self.config.vae.factor, method)
        return placement.compiled(_resize, static, mesh, (True,), parallel)(latent)

    @pinned()
    def decode(self, latent: Latent, *, mesh: Mesh, parallel: str = "jit") -> Image:
        """Returns the images of latents, float32, about [-1, 1] and not clipped."""
        run = placement.compiled(_decode, (self.config.vae, self.dtype), mesh, (False, True), parallel)
        return run(self.on(mesh)["vae"], latent)
