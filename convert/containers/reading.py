"""Reads any checkpoint as names and arrays. The kind of file is found from its first bytes, not from its name."""

import os
import pathlib

from sdjax.convert.containers.budget import Budget
from sdjax.convert.containers.diffusers_folder import read_folder
from sdjax.convert.containers.gguf import MAGIC, read_gguf
from sdjax.convert.containers.local_models import local_path
from sdjax.convert.containers.mapped import MappedFile, why
from sdjax.convert.containers.safetensors_file import read_safetensors
from sdjax.convert.containers.signatures import kind_of_bytes
from sdjax.convert.containers.stored import TensorFile
from sdjax.convert.errors import CheckpointError, OtherKindError

__all__ = ["TensorFile", "read"]


def read(path: str | os.PathLike[str], *, variant: str | None = None) -> TensorFile:
    """Returns the tensors of a `.ckpt`, `.safetensors`, `.gguf` or diffusers folder, by name. They are read when used.

    Args:
        path: a checkpoint of torch.save (zip or legacy), a safetensors or GGUF file, or a folder as diffusers writes
            it: a whole pipeline, whose tensors are named "unet/...", "vae/..." and so on, or one component.
        variant: which of a folder's sets of weights to read, such as "fp16"; components without it give their own.

    Nothing in the file is executed, whatever it holds: a pickle is read as data (`sdjax.convert.containers.pickles`).

    Raises:
        CheckpointError: where the file cannot be read, is damaged, or is not a checkpoint, with its name and why.
    """
    return read_path(local_path(path, variant=variant), variant)


def read_path(path: pathlib.Path, variant: str | None = None) -> TensorFile:
    """Returns the tensors of a file or folder that is at this very path. Raises CheckpointError."""
    try:
        is_folder = path.is_dir()
    except (OSError, ValueError) as error:  # a folder that may not be entered; a null character in the name
        raise CheckpointError(why(error), path) from error
    if is_folder:
        return read_folder(path, variant, read_file, Budget())
    if variant is not None:
        raise CheckpointError(
            f"variant {variant!r} was asked for, but only folders have variants: leave variant= out", path
        )
    return read_file(path, Budget())


def read_file(path: pathlib.Path, budget: Budget) -> TensorFile:
    """Returns the tensors of a single file. Raises CheckpointError."""
    file = MappedFile(path)
    try:
        budget.spend("files", 1, file.path)
        head = file.bytes(0, 16)
        if head[:4] == b"PK\x03\x04":
            from sdjax.convert.containers.torch_zip import read_torch_zip  # pickles: most files hold none

            return read_torch_zip(file, budget)
        if head[:1] == b"\x80":
            from sdjax.convert.containers.torch_legacy import MAGIC_BYTES, read_torch_legacy

            if head[2:].startswith(MAGIC_BYTES):
                return read_torch_legacy(file, budget)
        if head[:4] == MAGIC:
            return read_gguf(file, budget)
        if head[8:9] == b"{":
            return read_safetensors(file, budget)
        raise _unknown(head, file.path)
    except BaseException:
        file.close()
        raise


def _unknown(head: bytes, path: pathlib.Path) -> CheckpointError:
    expected = "expected a checkpoint of torch.save, a safetensors or a GGUF file"
    if head[:1] == b"\x80":
        return CheckpointError(f"{expected}, but this is a pickle that torch.save did not write", path)
    if kind := kind_of_bytes(head, path):
        return OtherKindError(kind.what, kind.advice, f"{expected}, but this is {kind.what}; {kind.advice}", path)
    if not head.strip(b"\0"):
        return CheckpointError(f"{expected}, but the file begins with zeros: a download that did not finish", path)
    return CheckpointError(f"{expected}, but its first bytes are none of theirs", path)
