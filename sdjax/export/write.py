"""Writes text to image as programs for CPU, CUDA and TPU, which run without the code of the networks.

The programs are those that `text_to_image` runs, traced for one size and one number of pictures. Rows, seeds, scales
and token ids are their arguments. So any number of steps, and every sampler with a linear rule, needs no other export.
"""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import export
from jaxtyping import Array, PyTree

from sdjax._version import __version__
from sdjax.checks.arguments import is_sequence, shown, whole
from sdjax.diffusion.conditioning import Conditioning
from sdjax.diffusion.guidance import ClassifierFree
from sdjax.diffusion.network import UNetNetwork
from sdjax.export import layout
from sdjax.export.layout import Description, named, restored
from sdjax.nn.jax_settings import IMPL, pinned
from sdjax.nn.quantised.leaf import quantised_count
from sdjax.pipeline import programs
from sdjax.pipeline.model import Pipeline
from sdjax.prompts.tokenizer import Tokenizer
from sdjax.purpose import check_task
from sdjax.samplers import SAMPLERS, Linear, chunks, repeat
from sdjax.storage import files
from sdjax.typing import Keys

Leaves = Mapping[str, Array]
Program = tuple[
    Callable[..., Any], tuple[Any, ...]
]  # a function of mappings and arrays, and the shapes it is traced for


@pinned()
def check_new(folder: str | os.PathLike[str]) -> None:
    """Raises FileExistsError, as a sentence, if something with this name exists."""
    if os.path.lexists(folder):
        raise FileExistsError(f"{folder} exists; choose another folder, or remove it")


def write(
    pipe: Pipeline, folder: str | os.PathLike[str], *, height: int, width: int, batch: int = 1,
    platforms: Sequence[str] = layout.PLATFORMS,
) -> None:  # fmt: skip
    """Writes text to image with this model into a new folder (`sdjax.export.layout`).

    The pictures have height x width pixels, and `batch` of them are made at a time. Computing is in the pipeline's
    dtype. A machine without an NVIDIA GPU exports for CUDA too, without cuDNN's attention.

    Raises ValueError for a model that makes no pictures from text alone or takes the guidance scale as an input, for
    one with words of its own (embeddings), which the tokenizer of an export does not know, and for unknown platforms;
    FileExistsError if the folder exists.
    """
    check_task(pipe.config, "text_to_image")
    if pipe.words:
        raise ValueError(
            f"an export cannot hold words with vectors of their own; the model has {', '.join(pipe.words)}"
        )
    if quantised_count(pipe.params):
        raise ValueError('an export holds no quantised weights: load the model with quantise="no"')
    if pipe.config.unet.guidance_dim is not None:
        raise ValueError("models that take the guidance scale as an input (LCM) cannot be exported: use an LCM-LoRA")
    chosen = check_platforms(platforms)
    whole("batch", batch, 1)
    made = make_programs(pipe, height, width, batch)
    rows = made["sample"][1][1]
    params = flatten_dict(jax.tree.map(np.asarray, dict(pipe.params)), sep="/")
    folder = Path(folder)

    needs = sum(leaf.nbytes for leaf in params.values())
    with files.new_folder(folder, check_new, what="exporting to", needs=needs) as partial:
        sizes = {}
        for platform in chosen:
            (partial / platform).mkdir()
            for name, (function, shapes) in made.items():
                data = bytes(export.export(jax.jit(function), platforms=[platform])(*shapes).serialize())
                sizes[f"{platform}/{name}"] = (len(data), hashlib.sha256(data).hexdigest())
                (partial / layout.program_file(f"{platform}/{name}")).write_bytes(data)
        _write_weights(partial / layout.WEIGHTS, params)
        if pipe.tokenizer != Tokenizer():
            pipe.tokenizer.save(partial / layout.TOKENIZER, length=pipe.config.text.max_length)
        description = Description(
            model=pipe.config.name, height=height, width=width, batch=batch, chunk=programs.CHUNK, rows=tuple(rows),
            length=pipe.config.text.max_length, pad=pipe.config.text.pad_token_id,
            guidance_scale=float(pipe.config.guidance_scale), dtype=pipe.dtype, schedule=pipe.config.schedule,
            programs=sizes, versions={"sdjax": __version__, "jax": jax.__version__},
            weight_bytes=(partial / layout.WEIGHTS).stat().st_size,
        )  # fmt: skip
        (partial / layout.MANIFEST).write_text(description.to_json())


def check_platforms(platforms: Sequence[str]) -> list[str]:
    """Returns the platforms. Raises ValueError for unknown ones, naming the known."""
    chosen = [str(platform) for platform in platforms] if is_sequence(platforms) else []
    if not chosen or not set(chosen) <= set(layout.PLATFORMS):
        raise ValueError(f"platforms are some of {', '.join(layout.PLATFORMS)}; got {shown(platforms)}")
    return sorted(set(chosen))


def make_programs(pipe: Pipeline, height: int, width: int, batch: int) -> dict[str, Program]:
    """Returns the programs of text to image, and the shapes of their arguments."""
    config = pipe.config
    vae = programs.VAEProgram(config.vae, pipe.dtype)
    program = programs.SampleProgram(UNetNetwork(config.unet, pipe.dtype), config.schedule.prediction, Linear())
    size = (height // config.vae.factor, width // config.vae.factor, config.vae.latent_channels)

    def text(weights: Leaves, ids: Array) -> Array:
        return programs.encode_text((config.text, pipe.dtype, False), _tree(weights), ids)

    def noise(words: Array) -> Array:
        return programs.noise(size, _keys(words))

    def inputs(contexts: Sequence[Array], scale: Array, rescale: Array) -> tuple[Any, ...]:
        return tuple(Conditioning(context) for context in contexts), ClassifierFree(scale, rescale)

    def begin(weights: Leaves, x: Array, contexts: Sequence[Array], scale: Array, rescale: Array) -> Leaves:
        return named(programs.begin(program, _tree(weights), x, *inputs(contexts, scale, rescale)))

    def sample(
        weights: Leaves, rows: Leaves, state: Leaves, words: Array, contexts: Sequence[Array], scale: Array,
        rescale: Array,
    ) -> Leaves:  # fmt: skip
        return named(
            programs.sample(
                program, _tree(weights), restored(rows, rows_like), restored(state, state_like), _keys(words),
                *inputs(contexts, scale, rescale),
            )
        )  # fmt: skip

    def decode(weights: Leaves, latent: Array) -> Array:
        return programs.decode(vae, _tree(weights), latent)

    weights = {
        part: jax.tree.map(_shape, flatten_dict(dict(pipe.params[part]), sep="/")) for part in ("text", "unet", "vae")
    }
    ids = jax.ShapeDtypeStruct((batch, config.text.max_length), np.int32)
    words = jax.ShapeDtypeStruct((batch, 2), np.uint32)
    latent = jax.ShapeDtypeStruct((batch, *size), np.float32)
    context = jax.eval_shape(text, weights["text"], ids)
    numbers = jax.ShapeDtypeStruct((batch,), np.float32)
    told = ([context, context], numbers, numbers)
    state_like = jax.eval_shape(
        lambda weights, x, *told: programs.begin(program, _tree(weights), x, *inputs(*told)),
        weights["unet"], latent, *told,
    )  # fmt: skip
    rows_like = next(chunks(repeat(SAMPLERS["ddim"]().steps(pipe.schedule, 1), batch), programs.CHUNK))
    rows_like = jax.tree.map(_shape, programs.images_first(rows_like))
    return {
        "text": (text, (weights["text"], ids)),
        "noise": (noise, (words,)),
        "begin": (begin, (weights["unet"], latent, *told)),
        "sample": (sample, (weights["unet"], named(rows_like), named(state_like), words, *told)),
        "decode": (decode, (weights["vae"], latent)),
    }


def _tree(weights: Leaves) -> PyTree:
    return unflatten_dict(dict(weights), sep="/")


def _keys(words: Array) -> Keys:
    return jax.random.wrap_key_data(words, impl=IMPL)


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype)


def _write_weights(path: Path, params: Mapping[str, np.ndarray]) -> None:
    from safetensors.flax import save_file

    save_file({name: jnp.asarray(leaf) for name, leaf in params.items()}, path)
