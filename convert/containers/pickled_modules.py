"""Files in which torch.save wrote whole modules instead of their tensors. Their objects are read as inert data.

A module's object has `_parameters`, `_buffers` and `_modules`. Nothing else of it is looked at, and no class is
imported: a file can only say what its tensors are called.
"""

import pathlib
from collections.abc import Iterator
from typing import Any

from sdjax.convert.containers.budget import Budget
from sdjax.convert.containers.mapped import MappedFile
from sdjax.convert.containers.pickle_values import Inert
from sdjax.convert.containers.stored import MAX_TENSORS, StoredTensor, TensorFile
from sdjax.convert.containers.torch_zip import read_torch_zip

MAX_DEPTH = 32  # modules inside modules
_PLACES = ("ema", "model")  # of a trainer's checkpoint: its average is taken, as its own loader does


def read_modules(path: pathlib.Path) -> TensorFile:
    """Returns the tensors of the module in a zip checkpoint, by name as `Module.state_dict()` names them.

    Raises CheckpointError for other files and for files without a module.
    """
    file = MappedFile(path)
    try:
        return read_torch_zip(file, Budget(), flattened=_state_dict)
    except BaseException:
        file.close()
        raise


def _state_dict(value: Any, file: MappedFile) -> dict[str, StoredTensor]:
    module = value
    if isinstance(value, dict):
        module = next((value[place] for place in _PLACES if type(value.get(place)) is Inert), None)
    if type(module) is not Inert:
        raise file.error("it holds no module whose tensors could be read")
    tensors: dict[str, StoredTensor] = {}
    for name, tensor in _tensors(module, "", 0):
        tensors[name] = tensor
        if len(tensors) > MAX_TENSORS:
            raise file.error(f"its module has more than {MAX_TENSORS} tensors")
    return tensors


def _tensors(module: Inert, before: str, depth: int) -> Iterator[tuple[str, StoredTensor]]:
    state = module.state
    if not isinstance(state, dict) or depth > MAX_DEPTH:
        return
    for kind in "_parameters", "_buffers":
        own = state.get(kind)
        for name, value in (own if isinstance(own, dict) else {}).items():
            if type(name) is str and type(value) is StoredTensor:
                yield before + name, value
    inner = state.get("_modules")
    for name, value in (inner if isinstance(inner, dict) else {}).items():
        if type(name) is str and type(value) is Inert:
            yield from _tensors(value, f"{before}{name}.", depth + 1)
