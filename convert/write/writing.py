"""Writing a model in any layout: the tables that read it, run backwards, one tensor in memory at a time."""

import os
import pathlib
from collections.abc import Callable

from numpy.typing import DTypeLike

from sdjax.convert.bundle import Bundle
from sdjax.convert.containers.casting import better_type, losses_in_words
from sdjax.convert.containers.lazy import float_type
from sdjax.convert.errors import CheckpointError
from sdjax.convert.names import beside
from sdjax.convert.write.diffusers_folder import write_diffusers
from sdjax.convert.write.native_folder import has_tokenizer, write_native
from sdjax.convert.write.outputs import FILES, WRITING, new_folder, staged
from sdjax.convert.write.safetensors_writer import Manifest
from sdjax.convert.write.single_file import in_file, write_ldm, write_ldm_gguf
from sdjax.nn.parts import NEEDED_FOLDERS
from sdjax.nn.quantised.kinds import NOT
from sdjax.storage import addresses
from sdjax.storage.files import check_room, new_file


def write_bundle(
    model: Bundle,
    path: str | os.PathLike[str],
    to: str,
    *,
    ema_names: bool = False,
    overwrite: bool = False,
    manifest: Manifest | None = None,
    lossy: bool = False,
) -> None:
    """Writes the model as "native" or "diffusers" folder, or as "ldm" or "gguf" file.

    What goes to gs:// or s3:// is written on this computer first, where its temporary folder has to have room for it.
    `ema_names` writes an ldm file's averaged weights too, under their `model_ema.` names. `manifest` is filled with
    shape, dtype and SHA-256 of every tensor, by the name that reading gives it. `lossy` also writes numbers that the
    type asked for cannot hold, as infinite ones and zeros; `model.losses` names the tensors then.

    Raises FileExistsError where something is there that may not be replaced, OSError where it cannot be written,
    ConfigError if the layout cannot describe the model, CheckpointError for a tokenizer that it has no place for, and
    for numbers that the type asked for cannot hold.
    """
    if to not in _WRITERS:
        raise ValueError(f"a layout to write is one of {', '.join(_WRITERS)}; got {to!r}")
    if addresses.remote(path):
        with staged(path, overwrite=overwrite) as local:
            return write_bundle(model, local, to, ema_names=ema_names, manifest=manifest, lossy=lossy)
    model = model.as_leaves() if to in FILES else model.quantised(NOT)  # other tools read folders
    leaves = (*model.leaves.values(), *model.extras.values())
    needs = sum(leaf.nbytes for leaf in leaves)
    check_room(path, needs, WRITING)
    if to in FILES:
        new = new_file(path, overwrite=overwrite, what=WRITING, needs=needs)
    else:
        new = new_folder(path, overwrite=overwrite, needs=needs)
    with new as partial:
        _WRITERS[to](model, partial, ema_names, manifest)
        if model.losses and not lossy:
            dtype = next(leaf.dtype.name for leaf in leaves if leaf.stored is not None)
            raise CheckpointError(
                f"{losses_in_words(model.losses, dtype)}; nothing was written: {better_type(dtype)}, or ask for it all "
                "the same (--lossy on the command line, lossy=True in Python)"
            )


def written_without(model: Bundle, to: str, dtype: DTypeLike | None = None) -> tuple[str, ...]:
    """Returns a sentence for each thing that a model loses when it is written in a layout."""
    notices = []
    if to in FILES:
        names = (in_file(name, model.config) for name in model.extras if not beside.BUFFERS.fullmatch(name))
        parts = NEEDED_FOLDERS  # of which only some tensors are lost
        pairs = ((name, name.partition("/")[0]) for name in names if "/" in name)
        if lost := sorted({name if component in parts else component for name, component in pairs}):
            notices.append(f"a single file has no place for {', '.join(lost)}; a folder keeps them")
    if not has_tokenizer(model):
        notices.append(
            f"it came without a tokenizer for the {model.config.text.vocab_size} tokens of its text encoder, so none "
            "was written"
        )
    if model.losses and (kind := float_type(dtype)) is not None:
        notices.append(f"{losses_in_words(model.losses, kind.name)}; they were written as infinite numbers and zeros")
    return tuple(notices)


_WRITERS: dict[str, Callable[[Bundle, pathlib.Path, bool, Manifest | None], None]] = {
    "native": write_native, "ldm": write_ldm, "gguf": write_ldm_gguf, "diffusers": write_diffusers,
}  # fmt: skip
