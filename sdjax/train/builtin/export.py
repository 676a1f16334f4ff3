"""Writes a training run's averaged parameters as a native model, which `sdjax.load` reads.

If the inpainting stage was trained, its own parameters go into a file beside the folder. The font's licence is copied
too, because every model that learned from the font's glyphs is under it.

python -m sdjax.train.builtin.export --folder runs/builtin --to sdjax/assets/builtin [--dtype float16] [--overwrite]
"""

import argparse
import dataclasses
import json
import pathlib

import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict

from sdjax.convert.bundle import bundle_of_params
from sdjax.convert.checkpoint import licence_files
from sdjax.convert.containers.casting import better_type, cast, loss, losses_in_words
from sdjax.convert.write.outputs import WRITING, layout_of
from sdjax.convert.write.writing import write_bundle
from sdjax.errors import sentence
from sdjax.loading.builtin import FOLDER, changes_of
from sdjax.storage.addresses import local
from sdjax.storage.files import write_file
from sdjax.train.builtin.training import KEPT, BuiltinTraining
from sdjax.typing import Params


def export(
    run: BuiltinTraining, target: str | pathlib.Path, *, dtype: str = "float16", overwrite: bool = False
) -> dict[str, int]:
    """Writes the model of a run to a folder and returns the number of steps each part of it was trained for.

    If the stage "inpainting" has a checkpoint, its parameters go into TARGET-inpainting.safetensors. The model card
    (README.md) of a replaced folder is kept.

    Raises ValueError if a part has no checkpoint yet, if a parameter does not fit into `dtype`, or if the replaced
    model has an inpainting model and the run has none. Raises FileExistsError if the target exists and `overwrite` is
    False.
    """
    layout_of(target, "native")  # a folder's name
    target = pathlib.Path(local(target))
    stages = ("autoencoder", "diffusion")
    parts = {stage: found for stage in stages if (found := run.averaged(stage)) is not None}
    missing = [stage for stage in stages if stage not in parts]
    if missing:
        raise ValueError(f"{run.folder} holds no checkpoint of {' and '.join(missing)} yet; train it first")
    params = {**parts["autoencoder"][1], **parts["diffusion"][1]}
    if (inpainting := run.averaged("inpainting")) is not None:
        parts["inpainting"] = inpainting
    elif changes_of(target).exists():
        raise ValueError(
            f"{changes_of(target)} belongs to the model that would be replaced, and {run.folder} holds none of "
            "inpainting yet; train it first, move that file away or write elsewhere"
        )
    changes = _cast(inpainting[1] if inpainting else {}, dtype)
    card = target / "README.md"
    text = card.read_bytes() if card.is_file() else None
    model = bundle_of_params(run.model, params, run.tokenizer).cast(dtype)
    write_bundle(dataclasses.replace(model, licences=licence_files(FOLDER)), target, "native", overwrite=overwrite)
    if text is not None:
        write_file(card, text, overwrite=True, what="writing the model card")
    if changes:
        tensors = {name: np.asarray(leaf) for name, leaf in run.inpainting.export(changes).items()}
        write_file(changes_of(target), safetensors.numpy.save(tensors), overwrite=overwrite, what=WRITING)
    return {stage: found[0] for stage, found in parts.items()}


def _cast(params: Params, dtype: str) -> Params:
    """Returns the tree cast to `dtype`. Raises ValueError, naming the parameters, if their values do not fit."""
    wide = {path: np.asarray(leaf) for path, leaf in flatten_dict(params).items()}
    narrow = {path: cast(leaf, jnp.dtype(dtype)) for path, leaf in wide.items()}
    losses = {"/".join(path): lost for path in wide if (lost := loss(wide[path], narrow[path]))}
    if losses:
        raise ValueError(f"{losses_in_words(losses, dtype)}; {better_type(dtype)}")
    return unflatten_dict(narrow)


def open_training(folder: pathlib.Path) -> BuiltinTraining:
    """Returns the run in a folder, with the model that the folder keeps."""
    from sdjax.configs import builtin

    settings = builtin.get_config()
    if (folder / KEPT).exists():
        settings.model = json.loads((folder / KEPT).read_text())["model"]
    return BuiltinTraining(settings, folder)


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser(description="Write the averaged parameters of a training run as a native model.")
    parser.add_argument("--folder", default="runs/builtin", help="the run (default: %(default)s)")
    parser.add_argument("--to", required=True, help="the model's folder, sdjax/assets/builtin for the package's own")
    parser.add_argument("--dtype", default="float16", choices=["float16", "bfloat16", "float32"])
    parser.add_argument("--overwrite", action="store_true", help="replace an existing model")
    return parser


def main() -> None:
    """Exports a model as the command line's flags say."""
    flags = make_parser().parse_args()
    try:
        steps = export(
            open_training(pathlib.Path(flags.folder)), flags.to, dtype=flags.dtype, overwrite=flags.overwrite
        )
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {sentence(error)}".replace("overwrite=True", "--overwrite")) from None
    files = [path for path in pathlib.Path(flags.to).rglob("*") if path.is_file()]
    if "inpainting" in steps:
        files.append(changes_of(pathlib.Path(flags.to)))
    trained = ", ".join(f"{stage} {count} steps" for stage, count in steps.items())
    print(f"wrote {flags.to}: {sum(path.stat().st_size for path in files) / 1e6:.1f} MB, {trained}")


if __name__ == "__main__":
    main()
