"""The tensors of pickled modules, which are read as inert data: of whole PyTorch modules, and of TorchScript programs.

Nothing else of an object is looked at, and no class is imported: a file can only say what its tensors are called.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sdjax.convert.containers.mapped import MappedFile
from sdjax.convert.containers.pickle_values import Inert
from sdjax.convert.containers.stored import MAX_TENSORS, StoredTensor

MAX_DEPTH = 32  # modules inside modules
Contents = Callable[[Mapping[Any, Any]], Iterator[tuple[Any, Any]]]


def pickled(state: Mapping[Any, Any]) -> Iterator[tuple[Any, Any]]:
    """Yields the tensors and modules of the state of a torch.nn.Module's object, with their names."""
    for kind in "_parameters", "_buffers", "_modules":
        own = state.get(kind)
        yield from own.items() if isinstance(own, dict) else ()


def scripted(state: Mapping[Any, Any]) -> Iterator[tuple[Any, Any]]:
    """Yields the attributes of a TorchScript object: tensors, modules, and others."""
    yield from state.items()


def tensors_of(module: Any, file: MappedFile, contents: Contents) -> dict[str, StoredTensor]:
    """Returns the tensors of a module and the modules in it, by name as `Module.state_dict()` names them.

    Raises CheckpointError if there is no module, or if there are too many modules or tensors. (A file may put one
    module into many others, so that a few bytes are a tree without end.)
    """
    if type(module) is not Inert:
        raise file.error("it holds no module whose tensors could be read")
    found: dict[str, StoredTensor] = {}
    waiting, seen = [("", module, 0)], 0
    while waiting:
        before, one, depth = waiting.pop()
        seen += 1
        inner = []
        for name, value in contents(one.state) if isinstance(one.state, dict) else ():
            if type(name) is str and type(value) is StoredTensor:
                found[before + name] = value
            elif type(name) is str and type(value) is Inert and depth < MAX_DEPTH:
                inner.append((f"{before}{name}.", value, depth + 1))
        waiting += reversed(inner)
        if max(len(found), seen + len(waiting)) > MAX_TENSORS:
            raise file.error(f"its module has more than {MAX_TENSORS} tensors or modules")
    return found
