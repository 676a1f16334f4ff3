"""Checkpoints that torch.save wrote before 1.6: pickles one after the other, then the storages' bytes.

Layout: pickles of a magic number, a protocol number, facts about the writing machine, the value, and the list of the
storages' keys; then, for each key in that order, the number of elements as a little-endian 64-bit integer and the
elements, little-endian too whatever the machine was.
"""

from typing import Any

from sdjax.convert.containers.budget import Budget
from sdjax.convert.containers.mapped import MappedFile
from sdjax.convert.containers.pickles import MAX_BYTES, read_pickle
from sdjax.convert.containers.stored import Span, TensorFile
from sdjax.convert.containers.torch_objects import TorchObjects, named_tensors
from sdjax.convert.errors import shown

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
MAGIC_BYTES = b"\x8a\x0a" + MAGIC.to_bytes(10, "little") + b"."  # after PROTO and its number


def read_torch_legacy(file: MappedFile, budget: Budget) -> TensorFile:
    """Returns the tensors of a legacy checkpoint.

    Raises:
        CheckpointError: for anything that torch.save did not write, calls in the pickles included.
    """
    data = file.bytes(0, MAX_BYTES)
    objects = TorchObjects(file.path, budget, legacy=True)
    position = 0

    def next_pickle(**meanings: Any) -> Any:
        nonlocal position
        value, position = read_pickle(data, file, budget, start=position, **meanings)
        return value

    magic, protocol, machine = (next_pickle() for _ in range(3))
    if (magic, protocol) != (MAGIC, PROTOCOL) or not isinstance(machine, dict):
        raise file.error("it begins like a checkpoint of an old torch, but is none")
    value = next_pickle(calls=objects.calls, persistent=objects.persistent)
    tensors, metadata = named_tensors(value, file)
    keys = next_pickle()
    if type(keys) is not list or any(type(key) is not str for key in keys) or len(set(keys)) != len(keys):
        raise file.error("its list of storages is malformed")
    if set(keys) != set(objects.storages):
        raise file.error("its list of storages is not the list of those that its tensors use")

    for key in keys:
        storage = objects.storages[key]
        stop = position + 8 + storage.nbytes
        if stop > file.size:
            raise file.error(f"storage {shown(key)} would end at byte {stop} of {file.size}: the file was cut short")
        count = int.from_bytes(file.bytes(position, position + 8), "little", signed=True)
        if count != storage.count:
            raise file.error(f"storage {shown(key)} has {count} elements where the tensors need {storage.count}")
        storage.source = Span(file, position + 8, stop)
        position = stop
    if position != file.size:
        raise file.error(f"{file.size - position} bytes follow its last storage")
    return TensorFile(file.path, "ckpt-legacy", tensors, metadata, files=[file])
