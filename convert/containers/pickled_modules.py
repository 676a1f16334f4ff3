"""Files in which torch.save wrote whole modules instead of their tensors."""

import pathlib
from typing import Any

from sdjax.convert.containers.budget import Budget
from sdjax.convert.containers.mapped import MappedFile
from sdjax.convert.containers.module_trees import pickled, tensors_of
from sdjax.convert.containers.pickle_values import Inert
from sdjax.convert.containers.stored import StoredTensor, TensorFile
from sdjax.convert.containers.torch_zip import read_torch_zip

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
    if isinstance(value, dict):
        value = next((value[place] for place in _PLACES if type(value.get(place)) is Inert), None)
    return tensors_of(value, file, pickled)
