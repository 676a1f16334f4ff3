"""Writing parameters in memory, and converting a checkpoint from one layout into another."""

import dataclasses
import json
import os
import warnings
from typing import Any

from numpy.typing import DTypeLike

from sdjax.config import ModelConfig
from sdjax.convert.bundle import Bundle, Report, bundle_of_params
from sdjax.convert.checkpoint import CheckpointLike
from sdjax.convert.describe.choices import ConfigLike
from sdjax.convert.model import load_model
from sdjax.convert.write.outputs import FILES, WRITING, check_not_input, check_output, layout_of
from sdjax.convert.write.writing import write_bundle, written_without
from sdjax.nn.quantised.kinds import KINDS, WRITTEN, Kind, kind_named
from sdjax.prompts.tokenizer import Tokenizer
from sdjax.storage.files import write_file
from sdjax.typing import Params


def save(
    config: ModelConfig,
    params: Params,
    path: str | os.PathLike[str],
    *,
    to: str = "auto",
    tokenizer: Tokenizer | None = None,
    dtype: DTypeLike | None = None,
    like: Bundle | None = None,
    lossy: bool = False,
    overwrite: bool = False,
) -> None:
    """Writes parameters in memory as `convert` would write a checkpoint's, and warns of what the layout cannot hold.

    `tokenizer` None is CLIP's own. `like` is the model that they were read from (`load_model`): its metadata, licence,
    model card and tensors beside the parameters go along, and parameters that are still the same are written in the
    type that they are stored in. `dtype` casts all.

    Raises ValueError if the parameters, the tokenizer or the name do not fit, CheckpointError and FileExistsError as
    `convert`.
    """
    layout = layout_of(path, to)
    check_output(path, overwrite, WRITING, folder=layout not in FILES)
    model = bundle_of_params(config, params, tokenizer, like).cast(dtype)
    write_bundle(model, path, layout, overwrite=overwrite, lossy=lossy)
    for notice in written_without(model, layout, dtype):
        warnings.warn(f"{os.fspath(path)}: {notice}", stacklevel=2)


def kind_for_format(name: str, format: str) -> Kind:
    """Returns the type to quantise to. Raises ValueError unless it is one that files of the format hold."""
    kind = kind_named(name)
    if kind.fits_files != FILES.get(format):
        others = [name for name in WRITTEN if KINDS[name].fits_files == FILES.get(format)]
        instead = f", or quantise to {' or '.join(others)}" if others else ""
        raise ValueError(
            f"{kind.name} is for a file in {kind.fits_files}; the {format} format was asked for: name a file that ends "
            f"so{instead}"
        )
    return kind


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    to: str = "auto",
    dtype: DTypeLike | None = None,
    ema: str = "auto",
    vae: CheckpointLike | None = None,
    prediction: str | None = None,
    config: ConfigLike | None = None,
    variant: str | None = None,
    ema_names: bool = False,
    manifest: str | os.PathLike[str] | None = None,
    vocab: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    lossy: bool = False,
    quantise: str | None = None,
) -> Report:
    """Writes a checkpoint in another layout, one tensor at a time, and returns a report of the decisions.

    `to` is "native" (a folder), "diffusers" (a folder), "ldm" (a single `.safetensors` file) or "gguf" (a single
    `.gguf` file); "auto" means what the name ends in, else native. Tensors keep their bytes unless `dtype` asks
    otherwise; what is no parameter (noise tables, OpenCLIP's last block, a safety checker) goes along, in folders as
    extra.safetensors. `ema_names` keeps both sets of the UNet's weights where there are two, and writes an ldm file's
    averaged ones under `model_ema.` names. `manifest` is a JSON file to write with the shape, dtype and SHA-256 of
    every tensor. `vocab` is the WordPiece vocabulary of a model that reads BERT's tokens, to go along. `lossy` also
    writes numbers that `dtype` cannot hold, as infinite ones and zeros. The other arguments are `load`'s.

    `quantise` is a type for the weights of the UNet and the text encoder: "int8" and "fp8" for a `.safetensors` file,
    ggml's "q8_0", "q5_0", "q5_1", "q4_0", "q4_1" and "q4_k" for a `.gguf` file (docs/quantised.md).

    A single file keeps in its metadata what a folder has in files: tokenizer, licence, model card, description.

    Raises CheckpointError as `load`, for numbers that `dtype` cannot hold, and for what the layout has no place for;
    FileExistsError where something may not be replaced; ValueError for a name that says another layout.
    """
    layout = layout_of(target, to)
    kind = None if quantise is None else kind_for_format(quantise, layout)
    check_not_input(target, source, vae)
    if manifest is not None:
        check_not_input(manifest, source, vae, target)
        if os.path.abspath(manifest) == os.path.abspath(target):
            raise ValueError(f"the manifest and the model cannot both be {os.fspath(target)!r}; give it another name")
        check_output(manifest, overwrite, "writing the manifest")
    check_output(target, overwrite, WRITING, folder=layout not in FILES)
    words = None if vocab is None else Tokenizer.from_vocabulary(vocab)
    model = load_model(source, config, prediction, ema, vae, dtype, variant, keep_both=ema_names)
    if words is not None:
        model = dataclasses.replace(model, own_tokenizer=model.tokenizer_with(words))
    if kind is not None:
        model = model.quantised(kind.name)
    table: dict[str, Any] | None = None if manifest is None else {}
    write_bundle(model, target, layout, ema_names=ema_names, overwrite=overwrite, manifest=table, lossy=lossy)
    if manifest is not None:
        text = json.dumps(table, indent=1, sort_keys=True) + "\n"
        write_file(manifest, text.encode(), overwrite=overwrite, what="writing the manifest")
    return dataclasses.replace(model.report, notices=(*model.report.notices, *written_without(model, layout, dtype)))
