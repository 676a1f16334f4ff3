"""`sdjax.load`: from a file, a folder or a hub repository to a pipeline."""

import functools
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from numpy.typing import DTypeLike

from sdjax.checks.arguments import dtype_name
from sdjax.checks.hints import explains_arguments
from sdjax.config import ModelConfig
from sdjax.convert.bundle import Bundle
from sdjax.convert.containers.casting import advice, told
from sdjax.convert.describe.choices import ConfigLike
from sdjax.convert.model import load_model
from sdjax.loading import builtin, hub
from sdjax.loading.run_layout import is_run
from sdjax.nn.jax_settings import pinned
from sdjax.pipeline import cache
from sdjax.pipeline.model import Pipeline, cast
from sdjax.pipeline.placement import default_dtype
from sdjax.prompts.tokenizer import Tokenizer


@explains_arguments(task=False)
@pinned()
def load(
    path: str | os.PathLike[str] | None = None,
    *,
    config: ConfigLike | None = None,
    prediction: str | None = None,
    ema: str = "auto",
    vae: str | os.PathLike[str] | None = None,
    depth: str | os.PathLike[str] | None = None,
    vision: str | os.PathLike[str] | None = None,
    noise_stats: str | os.PathLike[str] | None = None,
    dtype: DTypeLike | None = None,
    variant: str | None = None,
    revision: str | None = None,
    vocab: str | os.PathLike[str] | None = None,
    check: Callable[[ModelConfig], None] | None = None,
) -> Pipeline:
    """Returns a pipeline for a `.ckpt`, `.safetensors`, diffusers folder, native folder or hub repository "owner/name".

    A model in a bucket, gs:// or s3://, is copied to this computer once (`sdjax.storage.buckets.fetch`).
    The address of a model's page or file at the hub is understood too (`sdjax.convert.containers.places.read_place`).
    Without a path it is the model inside the package, a small one, and the pipeline's `notices` say so; by name it is
    "builtin", and "builtin-inpainting" the one made of it for inpainting (a folder of these names is "./builtin"). The
    folder of a training (`sdjax train --workdir`, which may be gs://bucket/run) gives the model of its newest
    checkpoint, the averaged one if there is one.

    `config` (a ModelConfig, its name, or an original ldm YAML), `prediction` ("epsilon", "v", "x0"), `ema` ("auto",
    "yes", "no") and `variant` (of a diffusers folder, as "fp16") are `sdjax.convert.load`'s; `vae` is a file, folder or
    hub repository to take the autoencoder from, `depth` likewise for the depth network, as "Intel/dpt-hybrid-midas",
    and `vision` for unCLIP's image tower, as "openai/clip-vit-large-patch14"; `noise_stats` is a file or folder with
    the mean and standard deviation of image embeddings, Stability's `ViT-L-14_stats.th` for unCLIP-L;
    `revision` is the hub's. `dtype` is what the networks compute in and how parameters are held: "float32", "bfloat16"
    or "float16", or NumPy's or JAX's type; None means float32 on CPU and bfloat16 on accelerators. `check` is called
    with the model's description before the weights are read, and may refuse it by raising. `vocab` is the WordPiece
    vocabulary (bert-base-uncased's vocab.txt) that the model of LAION-400M needs, unless its folder holds one.

    Compiled programs are kept from run to run from here on (`sdjax.pipeline.cache`).

    Raises sdjax.convert.CheckpointError for a file that is not a model or not a whole one, ValueError for an argument
    out of range.
    """
    cache.enable()
    dtype = default_dtype() if dtype is None else dtype_name(dtype)
    said: list[str] = []
    files = {"vae": vae, "depth": depth, "vision": vision, "noise_stats": noise_stats}
    parts = {part: file for part, file in files.items() if file is not None}
    for file in parts.values():  # what lacks on this computer is said before anything is fetched
        if hub.is_local(file):
            hub.resolve(file)
    read: Callable[..., Bundle]
    if path is None or path in builtin.NAMES:
        own = str(path or builtin.NAME)
        for option, value in ("variant", variant), ("revision", revision):
            if value is not None:
                raise ValueError(f"{option} has no effect on the built-in model: name another one, or leave it out")
        read, source = functools.partial(builtin.load_model, own), str(builtin.place(own))
        said += [builtin.NOTICE] if path is None else []
    else:
        place = hub.resolve(path, revision=revision, variant=variant, say=said.append)
        source = str(place) if hub.is_local(path) else hub.name_of(path, place)
        if is_run(place):
            given = {"config": config, "prediction": prediction, **parts, "variant": variant, "revision": revision,
                     "vocab": vocab}  # fmt: skip
            return _load_run(place, ema, dtype, check, [name for name, value in given.items() if value is not None])
        read = functools.partial(load_model, place, variant=variant)
    words = None if vocab is None else Tokenizer.from_vocabulary(vocab)  # before the model is read: that takes longer
    places = {part: hub.resolve(file, say=said.append) for part, file in parts.items()}
    bundle = read(config=config, prediction=prediction, ema=ema, dtype=dtype, **places)
    if check is not None:
        check(bundle.config)
    return _pipeline(bundle, bundle.tokenizer_with(words), dtype, source, [*said, *bundle.report.notices])


def _pipeline(bundle: Bundle, tokenizer: Tokenizer, dtype: str, source: str, said: Iterable[str]) -> Pipeline:
    """Returns the pipeline of what a checkpoint holds; says which tensors hold numbers that the type cannot."""
    params, notices = cast(bundle.read_params(), dtype), tuple(dict.fromkeys(said))
    if bundle.losses:
        notices += (f"{told(bundle.losses, dtype)}, and pictures will suffer: {advice(dtype)}",)
    return Pipeline(bundle.config, params, tokenizer, dtype, source, notices, bundle)


def _load_run(
    path: Path, ema: str, dtype: str, check: Callable[[ModelConfig], None] | None, given: list[str]
) -> Pipeline:
    """Returns the model that a training has made so far."""
    from sdjax.loading.run_folder import trained  # Orbax takes long to import

    if given:
        raise ValueError(f"{path} is a training's folder, which says all about its model: leave out {given[0]}")
    step, model = trained(path, ema=ema)
    if check is not None:
        check(model.config)
    notice = f"the model of step {step} of the training in {path}"
    return _pipeline(model.cast(dtype), model.tokenizer(), dtype, str(path), [notice])
