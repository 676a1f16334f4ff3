"""Checkpoints that torch.save wrote as a zip archive (torch 1.6 and later): a pickle, and a member per storage.

TorchScript programs (torch.jit.save) are archives of the same kind. Their tensors are read, and their code is not.
"""

from collections.abc import Callable
from typing import Any

from sdjax.convert.containers.budget import Budget
from sdjax.convert.containers.mapped import MappedFile
from sdjax.convert.containers.module_trees import scripted, tensors_of
from sdjax.convert.containers.pickles import MAX_BYTES, read_pickle
from sdjax.convert.containers.stored import StoredTensor, TensorFile
from sdjax.convert.containers.torch_objects import TorchObjects, named_tensors
from sdjax.convert.containers.zips import Member, members


def read_torch_zip(
    file: MappedFile, budget: Budget, *, flattened: Callable[[Any, MappedFile], dict[str, StoredTensor]] | None = None
) -> TensorFile:
    """Returns the tensors of a zip checkpoint; a storage's checksum is checked when its data are first read.

    With `flattened`, objects of any class are read as inert data, and it returns the tensors in what was read.

    Raises:
        CheckpointError: for anything that torch does not write, calls in the pickle included.
    """
    archive = members(file, budget)
    roots = {name.split("/", 1)[0] for name in archive}
    root = roots.pop() if len(roots) == 1 else None
    if root is None or f"{root}/data.pkl" not in archive:
        raise file.error("the zip archive is no checkpoint: it has no data.pkl below one folder that holds everything")
    if f"{root}/constants.pkl" in archive and flattened is None:  # a TorchScript program, as OpenAI's CLIP
        flattened = _of_program
    byteorder = archive.get(f"{root}/byteorder")  # absent before torch 2.1
    if byteorder is not None and _small(byteorder, 16) != b"little":
        raise file.error("it was written on a big-endian machine; load and save it with torch on another one")

    objects = TorchObjects(file.path, budget, legacy=False)
    data = _small(archive[f"{root}/data.pkl"], MAX_BYTES)
    value, end = read_pickle(
        data, file, budget, calls=objects.calls, persistent=objects.persistent, objects=flattened is not None
    )
    if end != len(data):
        raise file.error("something follows the pickle in its data.pkl")
    tensors, metadata = named_tensors(value if flattened is None else flattened(value, file), file)
    for storage in objects.storages.values():
        member = archive.get(f"{root}/data/{storage.key}")
        if member is None:
            raise file.error("its pickle names a storage that is not in the archive")
        if member.size != storage.nbytes:
            raise file.error(
                f"storage {member.name} has {member.size} bytes where {storage.count} elements of {storage.dtype} "
                f"take {storage.nbytes}"
            )
        storage.source = member
    return TensorFile(file.path, "ckpt-zip", tensors, metadata, files=[file])


def _of_program(value: Any, file: MappedFile) -> dict[str, StoredTensor]:
    return tensors_of(value, file, scripted)


def _small(member: Member, limit: int) -> bytes:
    if member.size > limit:
        raise member.file.error(f"{member.name} has {member.size} bytes; no checkpoint's has more than {limit}")
    return bytes(member.view())
