"""`sdjax.load`: loads a pipeline from a file, a folder or a hub repository."""

import functools
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from numpy.typing import DTypeLike

from sdjax.checks.arguments import dtype_name, flag
from sdjax.checks.computer import return_large_blocks
from sdjax.checks.hints import explains_arguments
from sdjax.config import ModelConfig
from sdjax.convert.bundle import Bundle
from sdjax.convert.containers.casting import better_type, losses_in_words
from sdjax.convert.containers.quantising import check_choice
from sdjax.convert.containers.reading import read_path
from sdjax.convert.describe.choices import ConfigLike
from sdjax.convert.model import load_model
from sdjax.convert.parts.widened import find_widened
from sdjax.loading import builtin, hub
from sdjax.loading.run_layout import is_run
from sdjax.nn.jax_settings import pinned
from sdjax.nn.quantised.kinds import AS_STORED, NOT
from sdjax.pipeline import cache
from sdjax.pipeline.low_memory import LowMemoryPipeline
from sdjax.pipeline.model import Pipeline, cast
from sdjax.pipeline.placement import default_dtype
from sdjax.pipeline.streaming import stored
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
    widen: str | os.PathLike[str] | None = None,
    dtype: DTypeLike | None = None,
    variant: str | None = None,
    revision: str | None = None,
    vocab: str | os.PathLike[str] | None = None,
    quantise: str = "auto",
    low_memory: bool = False,
    check: Callable[[ModelConfig], None] | None = None,
) -> Pipeline:
    """Returns a pipeline for a file, diffusers folder, native folder or hub repository "owner/name".

    A file is a `.ckpt`, `.safetensors` or `.gguf`.

    `path` may also be:

    - a model in a bucket, gs:// or s3://; it is copied to this computer once (`sdjax.storage.buckets.fetch`).
    - the address of a model's page or file at the hub (`sdjax.convert.containers.places.read_place`).
    - None or "builtin": the small built-in model; for None, `Pipeline.notices` says so. "builtin-inpainting" is its
      version for inpainting. Write "./builtin" for a folder of that name.
    - the folder of a training (`sdjax train --workdir`, also gs://bucket/run). This loads the newest checkpoint, with
      averaged parameters if there are any.

    `config` (a ModelConfig, its name, or an original ldm YAML), `prediction` ("epsilon", "v", "x0"), `ema` ("auto",
    "yes", "no") and `variant` (of a diffusers folder, such as "fp16") are those of `sdjax.convert.load`. `revision` is
    that of the hub. Other parts may come from another file, folder or hub repository: `vae` (the autoencoder), `depth`
    (the depth network, such as "Intel/dpt-hybrid-midas") and `vision` (unCLIP's image tower, such as
    "openai/clip-vit-large-patch14"). `noise_stats` is a file or folder with the mean and standard deviation of image
    embeddings, such as Stability's `ViT-L-14_stats.th` for unCLIP-L.

    `widen` is a file of differences to the model's UNet, whose first convolution they widen, such as IC-Light's
    (`sdjax.convert.load_widened`).

    `dtype` is the type of parameters and computation: "float32", "bfloat16", "float16", or a type of NumPy or JAX. None
    means float32 on CPU and bfloat16 on accelerators. `check` is called with the model's description before the weights
    are read; it may raise to refuse the model. `vocab` is the WordPiece vocabulary (vocab.txt of bert-base-uncased) for
    the model of LAION-400M, unless its folder has one.

    `quantise` holds the kernels of UNet and text encoder in fewer bits: a type of docs/quantised.md such as "int8" or
    "q8_0"; "no" for none, "auto" for what the file has. They become `dtype` where they are used, layer by layer.

    With `low_memory` parameters stay in their file and are read whenever a network runs, layer by layer
    (`sdjax.pipeline.low_memory`, docs/memory.md). Pictures then need little memory and more time.

    From then on, compiled programs are kept from run to run (`sdjax.pipeline.cache`).

    Raises sdjax.convert.CheckpointError for a file that is not a model or is incomplete, ValueError for an argument out
    of range.
    """
    cache.enable()
    dtype = default_dtype() if dtype is None else dtype_name(dtype)
    quantise = check_choice(quantise)
    make = _stored_pipeline if flag("low_memory", low_memory) else _pipeline
    if low_memory and quantise not in (AS_STORED, NOT):
        raise ValueError(
            f"quantise={quantise!r} with low_memory would round the weights again in every call: write a quantised "
            "file first (sdjax convert --quantise), or leave it out"
        )
    said: list[str] = []
    files = {"vae": vae, "depth": depth, "vision": vision, "noise_stats": noise_stats, "widen": widen}
    parts = {part: file for part, file in files.items() if file is not None}
    for file in parts.values():  # missing local files raise before anything is fetched
        if hub.is_local(file):
            hub.resolve(file)
    read: Callable[..., Bundle]
    if path is None or path in builtin.NAMES:
        own = str(path or builtin.NAME)
        for option, value in ("variant", variant), ("revision", revision):
            if value is not None:
                raise ValueError(f"{option} has no effect on the built-in model: leave it out, or name another model")
        read, source = functools.partial(builtin.load_model, own), str(builtin.place(own))
        said += [builtin.NOTICE] if path is None else []
    else:
        place = hub.resolve(path, revision=revision, variant=variant, say=said.append)
        source = str(place) if hub.is_local(path) else hub.name_of(path, place)
        if is_run(place):
            given = {"config": config, "prediction": prediction, **parts, "variant": variant, "revision": revision,
                     "vocab": vocab}  # fmt: skip
            named = [name for name, value in given.items() if value is not None]
            return _load_run(make, place, ema, dtype, check, named, quantise)
        read = functools.partial(load_model, read_path(place, variant))
    words = None if vocab is None else Tokenizer.from_vocabulary(vocab)  # fails early, before the model is read
    places = {part: read_path(hub.resolve(file, say=said.append)) for part, file in parts.items()}
    difference = places.pop("widen", None)
    kind = dtype if difference is None else None  # sums are rounded once
    bundle = read(config=config, prediction=prediction, ema=ema, dtype=kind, **places)
    wider = None if difference is None else find_widened(difference, bundle.config)
    if check is not None:
        check(bundle.config if wider is None else wider.config)
    if wider is not None:
        made = wider.added(bundle.read_params(), dtype)
        bundle = bundle.with_params(made.params, made.config)
    bundle = bundle.quantised(quantise)
    return make(bundle, bundle.tokenizer_with(words), dtype, source, [*said, *bundle.report.notices])


def _pipeline(bundle: Bundle, tokenizer: Tokenizer, dtype: str, source: str, said: Iterable[str]) -> Pipeline:
    """Returns the pipeline of a checkpoint. Its notices name tensors whose numbers do not fit into `dtype`."""
    params, notices = cast(bundle.read_params(quantised=True), dtype), tuple(dict.fromkeys(said))
    if bundle.losses:
        notices += (f"{losses_in_words(bundle.losses, dtype)}, and pictures will suffer: {better_type(dtype)}",)
    return Pipeline(bundle.config, params, tokenizer, dtype, source, notices, bundle)


def _stored_pipeline(
    bundle: Bundle, tokenizer: Tokenizer, dtype: str, source: str, said: Iterable[str]
) -> LowMemoryPipeline:  # fmt: skip
    """Returns the pipeline of a checkpoint whose parameters are read when they are used."""
    cache.keep_small()
    return_large_blocks()
    if bundle.in_memory is not None:
        params = cast(bundle.in_memory, dtype)
    else:
        params = stored(bundle.cast(dtype).leaves)
    return LowMemoryPipeline(bundle.config, params, tokenizer, dtype, source, tuple(dict.fromkeys(said)), bundle)


def _load_run(
    make: Callable[..., Pipeline], path: Path, ema: str, dtype: str, check: Callable[[ModelConfig], None] | None,
    given: list[str], quantise: str,
) -> Pipeline:  # fmt: skip
    """Returns the pipeline of a training's newest checkpoint."""
    from sdjax.loading.run_folder import trained, trained_words  # Orbax takes long to import

    if given:
        raise ValueError(f"{given[0]} has no effect on a training's folder ({path}): leave it out")
    step, model = trained(path, ema=ema)
    if check is not None:
        check(model.config)
    notice = f"the model of step {step} of the training in {path}"
    pipe = make(model.cast(dtype).quantised(quantise), model.tokenizer(), dtype, str(path), [notice])
    return pipe.with_embeddings(trained_words(path, ema=ema))
