"""The x2 latent upscaler: pictures, or latents of Stable Diffusion 1 and 2, twice as high and wide, by sampling.

Source: diffusers' StableDiffusionLatentUpscalePipeline.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sdjax.checks import arguments
from sdjax.checks.arguments import dtype_name, number, shown, texts, whole
from sdjax.checks.hints import explains_arguments
from sdjax.convert.parts.latent_upscaler import LoadedLatentUpscaler, load_latent_upscaler
from sdjax.nn.jax_settings import make_keys, pinned
from sdjax.nn.latent_upscaler import LatentUpscaler, LatentUpscalerConfig, PooledText, condition
from sdjax.pictures.image import to_float, to_uint8
from sdjax.pipeline.programs import CHUNK, VAEProgram, decode, encode_image
from sdjax.prompts.syntax import check_lengths
from sdjax.samplers import Linear, Sampler, chunks
from sdjax.samplers.noise import START, draw_noise
from sdjax.samplers.rows import Rows, batch, per_image
from sdjax.samplers.rule import Denoised, Memory, Noisy, State, scan_rows
from sdjax.schedule import NoiseSchedule
from sdjax.tasks import inputs
from sdjax.tasks.extra_files import read_once
from sdjax.tasks.resolve import make_sampler
from sdjax.tasks.results import Pictures, advice, check_images, joined
from sdjax.typing import Keys, Params

Upscaler: TypeAlias = LoadedLatentUpscaler | str | os.PathLike[str]
TIMES = 2
STEP = 4  # a small latent's sides are multiples of this, because the network halves the large one three times ...
SMALLEST = 8  # ... and mirrors edges of maps of at least two pixels
LARGEST = 1024  # largest side of an input picture, in pixels


@dataclasses.dataclass(frozen=True)
class UpscalerDenoiser:
    """The denoiser of the upscaler: x0 = x / (sigma^2 + 1) + sigma / sqrt(sigma^2 + 1) F, then guidance.

    `context` and `told` are those of the branches: the prompt's, or the negative prompt's and the prompt's.
    """

    config: LatentUpscalerConfig
    dtype: str
    params: Params
    small: Array  # [1, h, w, c]
    context: Array  # [k, m, d]
    told: Array  # [k, e]
    scale: Array  # []

    def init(self, x: Noisy) -> Memory:
        """Returns no memory."""
        return ()

    def __call__(self, x: Noisy, row: Rows, memory: Memory) -> tuple[Denoised, Memory]:
        """Returns the guided x0, and those of the branches."""
        k, sigma = len(self.context), per_image(jnp.asarray(row.sigma, jnp.float32), x)
        log_sigma = jnp.log(jnp.maximum(jnp.broadcast_to(jnp.asarray(row.sigma), (k,)), 1e-6))
        scaled = jnp.repeat(x / jnp.sqrt(sigma**2 + 1), k, axis=0)
        network = LatentUpscaler(self.config, jnp.dtype(self.dtype))
        out = network.apply(
            {"params": self.params}, scaled, jnp.repeat(self.small, k, axis=0), log_sigma, self.context, self.told
        )
        each = x / (sigma**2 + 1) + sigma / jnp.sqrt(sigma**2 + 1) * jnp.asarray(out)
        without, with_prompt = each[:1], each[-1:]
        return Denoised(without + self.scale * (with_prompt - without), with_prompt, without), memory


Static: TypeAlias = tuple[LatentUpscalerConfig, str, Linear]


@functools.partial(jax.jit, static_argnums=0)
def _sample(
    static: Static, params: Params, rows: Rows, state: State, keys: Keys, inputs: tuple[Array, Array, Array, Array]
) -> State:
    config, dtype, rule = static
    return scan_rows(rule, UpscalerDenoiser(config, dtype, params, *inputs), state, rows, keys)


@functools.partial(jax.jit, static_argnums=0)
def _encode_text(static: tuple[Any, str], params: Params, ids: Array) -> tuple[Array, Array]:
    config, dtype = static
    return cast(tuple[Array, Array], PooledText(config, jnp.dtype(dtype)).apply({"params": params}, ids))


_encode = jax.jit(encode_image, static_argnums=0)
_decode = jax.jit(decode, static_argnums=0)


@explains_arguments(task=False)
@pinned()
def latent_upscale(
    upscaler: Upscaler,
    image: inputs.Pictures,
    prompt: str | Sequence[str] = "",
    *,
    negative_prompt: str = "",
    seed: int = 0,
    sampler: str | Sampler = "euler",
    num_steps: int = 20,
    guidance_scale: float = 1.0,
    dtype: str = "float32",
    progress: Callable[[int, int], None] | None = None,
) -> Pictures:
    """Returns the pictures twice as high and wide, uint8 [b, 2 h, 2 w, 3], or a list of [2 h, 2 w, 3].

    `upscaler`: the folder of stabilityai/sd-x2-latent-upscaler, or what `sdjax.convert.load_latent_upscaler` returns.
    `image`: a path, a file's bytes, a Pillow image or uint8 [h, w, 3], of up to 1024 x 1024 pixels, or a sequence of
    them; or latents, float [h, w, 4] or [b, h, w, 4] with sides of 8, 12, 16, ..., as a task returns them for
    `output="latent"`. A picture is padded to multiples of 64 by repeating its edges; the result is cropped.

    `prompt`: one for all, or one for each. Picture i has the seed `seed` + i. `sampler`: a name of
    `sdjax.samplers.SAMPLERS` or a sampler. `guidance_scale` 1 switches guidance off. `progress(done, total)` counts
    calls of the network.

    Raises ValueError for arguments out of range and what is no picture, `sdjax.convert.CheckpointError` for a folder of
    another model.
    """
    loaded, dtype = read_latent_upscaler(upscaler), dtype_name(dtype)
    given = _given(image)
    prompts = inputs.one_each("prompt", texts("prompt", prompt), len(given))
    check_lengths(loaded.tokenizer, [*prompts, negative_prompt], loaded.text.max_length)
    seed, scale = arguments.seed(seed), number("guidance_scale", guidance_scale, 1)
    schedule = NoiseSchedule()
    chosen = make_sampler(sampler, schedule)
    if not isinstance(chosen.rule, Linear):
        raise ValueError("the latent upscaler has no adaptive samplers: choose another one, such as euler")
    rows = batch([chosen.steps(schedule, whole("num_steps", num_steps, 1))])
    params = _on_device(loaded, dtype)
    vae, total, made = VAEProgram(loaded.vae, dtype), len(rows.index), []
    for i, (one, own) in enumerate(zip(given, prompts)):
        keys = make_keys([(seed + i) & arguments.MAX_SEED])
        size = one.shape[:2] if one.shape[-1] == 3 else [loaded.vae.factor * side for side in one.shape[:2]]
        with advice(TIMES * size[0], TIMES * size[1], 1, dtype):
            small = jnp.asarray(one)[None]
            if one.shape[-1] == 3:
                small = _encode((vae, 0), params["vae"], jnp.asarray(to_float(inputs.pad(one)))[None], keys)
            small = jnp.repeat(jnp.repeat(small, TIMES, axis=1), TIMES, axis=2)
            branches = [own] if scale == 1 else [negative_prompt, own]
            ids = loaded.tokenizer(branches, length=loaded.text.max_length, pad_token_id=loaded.text.pad_token_id)
            context, pooled = _encode_text((loaded.text, dtype), params["text"], ids)
            told = (small, context, condition(pooled), jnp.float32(scale))
            state = chosen.rule.init(chosen.initial(draw_noise(keys, START, 0, small.shape[1:]), rows))
            for done, chunk in zip(range(CHUNK, total + CHUNK, CHUNK), chunks(rows, CHUNK), strict=True):
                state = _sample((loaded.unet, dtype, chosen.rule), params["unet"], chunk, state, keys, told)
                if progress is not None:
                    jax.block_until_ready(state)
                    progress(i * total + min(done, total), len(given) * total)
            made_now = np.asarray(_decode(vae, params["vae"], chosen.final(state, rows)))
        check_images(made_now, dtype)
        made.append(to_uint8(made_now[0])[: TIMES * size[0], : TIMES * size[1]])
    return joined(made)


def read_latent_upscaler(given: Upscaler) -> LoadedLatentUpscaler:
    """Returns the latent upscaler of a folder, which is read once as long as it does not change.

    Raises ValueError for a value of another kind, `sdjax.convert.CheckpointError` for a folder of another model.
    """
    if isinstance(given, str | os.PathLike):
        return _read(os.fspath(given))
    if not isinstance(given, LoadedLatentUpscaler):
        what = "a latent upscaler is a folder or what sdjax.convert.load_latent_upscaler returns"
        raise ValueError(f"{what}; got {shown(given)}")
    return given


@read_once(1)
def _read(path: str) -> LoadedLatentUpscaler:
    return load_latent_upscaler(path)


@functools.lru_cache(maxsize=1)
def _on_device(loaded: LoadedLatentUpscaler, dtype: str) -> dict[str, Params]:
    return {name: jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tree) for name, tree in loaded.params.items()}


def _given(image: inputs.Pictures) -> list[np.ndarray]:
    """Returns pictures, uint8 [h, w, 3], or latents, float32 [h, w, 4]. Raises ValueError."""
    kind = getattr(image, "dtype", None)
    if kind is not None and jnp.issubdtype(kind, jnp.floating):
        latents = np.asarray(image, np.float32)
        several = list(latents) if latents.ndim == 4 else [latents]
        for one in several:
            if one.ndim != 3 or one.shape[-1] != 4 or any(side % STEP or side < SMALLEST for side in one.shape[:2]):
                raise ValueError(
                    f"latents are [h, w, 4] with sides that are multiples of {STEP}, at least {SMALLEST}; got "
                    f"{latents.shape}"
                )
            if not np.isfinite(one).all():
                raise ValueError("the latents hold values that are not finite")
        return several
    opened = inputs.open_pictures(image)
    for picture in opened:
        check_side(*picture.shape[:2])
    return opened


def check_side(height: int, width: int) -> None:
    """Raises ValueError for a picture that is too large for the latent upscaler."""
    if max(height, width) > LARGEST:
        raise ValueError(
            f"a picture for the latent upscaler has at most {LARGEST} x {LARGEST} pixels; got {width} x {height}"
        )
