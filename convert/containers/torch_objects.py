"""The tensors in a torch pickle: storages by key, the tensors that use them, and their names."""

import dataclasses
import itertools
import math
import pathlib
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from sdjax.convert.containers.budget import Budget
from sdjax.convert.containers.mapped import MappedFile
from sdjax.convert.containers.pickle_values import OrderedDict, Reference
from sdjax.convert.containers.stored import (
    MAX_COUNT,
    MAX_NAME,
    MAX_RANK,
    MAX_TENSORS,
    Storage,
    StoredTensor,
    check_name,
    check_total,
)
from sdjax.convert.errors import OtherKindError, shown

STORAGES: dict[tuple[str, str], np.dtype] = {
    ("torch", f"{kind}Storage"): np.dtype(dtype)
    for kind, dtype in {
        "Float": "<f4",
        "Half": "<f2",
        "BFloat16": ml_dtypes.bfloat16,
        "Double": "<f8",
        "Long": "<i8",
        "Int": "<i4",
        "Short": "<i2",
        "Char": "i1",
        "Byte": "u1",
        "Bool": "?",
    }.items()
}

MAX_NESTED = 4  # levels of dictionaries that are searched for tensors
_AROUND = (  # trainers' names for the dictionary of weights beside an optimizer's state
    "model_state_dict", "params_ema", "ema_model", "model_ema", "params", "model", "module", "net", "network", "unet",
    "weights", "model_state", "ema",
)  # fmt: skip


@dataclasses.dataclass(slots=True, eq=False)
class TorchStorage:
    """A storage as the pickle names it; where its bytes lie is found out once the pickle was read."""

    key: str
    dtype: np.dtype
    count: int
    source: Storage | None = None

    @property
    def nbytes(self) -> int:
        return self.count * self.dtype.itemsize

    def view(self) -> memoryview:
        assert self.source is not None
        return self.source.view()

    def release(self) -> None:
        assert self.source is not None
        self.source.release()


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class StoragePart:
    """Elements `start` to `start + count` of a storage: what a persistent id stands for."""

    storage: TorchStorage
    start: int
    count: int


class TorchObjects:
    """The meanings of torch's calls and persistent ids, for `read_pickle`; `storages` are those that it met.

    Problems are ValueErrors in words that follow "its pickle is refused at byte N: ".
    """

    def __init__(self, path: pathlib.Path, budget: Budget, *, legacy: bool) -> None:
        self.storages: dict[str, TorchStorage] = {}
        self.calls: dict[tuple[str, str], Callable[..., StoredTensor]] = {
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("torch._utils", "_rebuild_parameter"): self._parameter,
        }
        self._path = path
        self._budget = budget
        self._legacy = legacy

    def persistent(self, identity: Any) -> StoragePart:
        """Returns the storage that ("storage", type, key, device, elements) names, or a legacy file's view of it."""
        if type(identity) is not tuple or len(identity) != (6 if self._legacy else 5) or identity[0] != "storage":
            raise ValueError("it names something that is not a tensor's storage")
        kind, key, device, count = identity[1:5]
        if type(kind) is not Reference or (kind.module, kind.name) not in STORAGES:
            known = ", ".join(name for _, name in STORAGES)
            raise ValueError(f"it has a storage of type {kind if type(kind) is Reference else 'none'}; known: {known}")
        if type(key) is not str or type(device) is not str or not _natural(count):
            raise ValueError("it has a storage whose key, device or size is malformed")
        dtype = STORAGES[kind.module, kind.name]
        storage = self.storages.setdefault(key, TorchStorage(key, dtype, count))
        if (storage.dtype, storage.count) != (dtype, count):
            raise ValueError("it describes one storage in two ways")
        if not self._legacy or identity[5] is None:
            return StoragePart(storage, 0, count)
        match identity[5]:  # (key of the view, first element, elements)
            case (str(), int(first), int(size)) if first >= 0 and size >= 0 and first + size <= count:
                return StoragePart(storage, first, size)
        raise ValueError("it has a view that lies outside its storage")

    def _tensor(self, *args: Any) -> StoredTensor:
        self._budget.spend("tensors", 1, self._path)
        # (storage, offset, shape, strides, requires_grad, hooks[, metadata]); the last for a lazy conjugate
        if len(args) not in (6, 7) or type(args[0]) is not StoragePart or not _natural(args[1]):
            raise ValueError("it rebuilds a tensor from malformed arguments")
        _check_hooks(args[4:6])
        if len(args) == 7 and args[6] is not None and not _is_empty(args[6]):
            raise ValueError("it rebuilds a tensor with attributes of its own")
        part, offset, shape, strides = args[:4]
        if not _naturals(shape) or not _naturals(strides) or len(shape) != len(strides):
            raise ValueError("it rebuilds a tensor with malformed shape or strides")
        if math.prod(max(n, 1) for n in shape) > MAX_COUNT:
            raise ValueError(f"it rebuilds a tensor of more than {MAX_COUNT} elements; no model's tensor has")
        count = math.prod(shape)
        # An expanded tensor (stride 0) makes much of little: never more elements than its storage has.
        last = sum((n - 1) * stride for n, stride in zip(shape, strides))
        if count > part.count or offset + (last + 1 if count else 0) > part.count:
            raise ValueError(f"it rebuilds a tensor of shape {shape} that lies outside its storage of {part.count}")
        # An axis of length 1 may claim any stride, also one beyond 64 bits once it counts bytes; none is taken.
        strides = tuple(stride if n > 1 else 0 for n, stride in zip(shape, strides))
        return StoredTensor(part.storage, part.storage.dtype, shape, part.start + offset, strides)

    def _parameter(self, *args: Any) -> StoredTensor:
        if len(args) != 3 or type(args[0]) is not StoredTensor:
            raise ValueError("it rebuilds a parameter from something that is not a tensor")
        _check_hooks(args[1:])
        return args[0]


def named_tensors(root: Any, file: MappedFile) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Returns the tensors by name and the numbers and text beside them, from a checkpoint's unpickled value.

    Tensors lie under `state_dict`, in older or stripped files at the top level. Optimizer states, callbacks and the
    like, beside them or among them, are left out. Tensors of a tuple are named "0", "1" and so on.
    """
    if type(root) is tuple and root and all(type(value) is StoredTensor for value in root):
        root = {str(index): value for index, value in enumerate(root)}
    if not isinstance(root, dict):
        raise file.error("it holds no dictionary of tensors")
    root, table = _table_of(root, file)
    tensors, metadata = {}, {}
    for key, value in table.items():
        if type(value) is StoredTensor:
            tensors[check_name(key, file)] = value
        elif table is not root and type(value) in (Reference, StoragePart):
            raise file.error(f"entry {check_name(key, file)} of its state_dict is no tensor")
    for scalars in (root,) if table is root else (root, table):
        for key, value in scalars.items():
            if type(key) is str and type(value) in (bool, int, float, str):
                metadata[check_name(key, file)] = str(value)
    if not tensors:
        if any(key in root for key in ("last_epoch", "_step_count", "param_groups", "growth_factor")):
            what, advice = "the state of a training (its optimizer, rates or scaling)", "name the model beside it"
            raise OtherKindError(what, advice, f"it is {what}; {advice}", file.path)
        keys = ", ".join(shown(key) for key in itertools.islice(table, 10)) or "nothing"
        raise file.error(f"there are no tensors under state_dict or at its top level, only {keys}")
    check_total(tensors, file)
    return tensors, metadata


def _table_of(root: dict[Any, Any], file: MappedFile) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """Returns the dictionary with the tensors' dictionary in it, and that one, whatever a trainer has put around it.

    Where tensors lie deeper, and under no such name, they are named by all keys on the way, joined by dots.
    """
    for _ in range(MAX_NESTED):
        if "state_dict" in root or any(type(value) is StoredTensor for value in root.values()):
            break
        inner = next((root[key] for key in _AROUND if isinstance(root.get(key), dict) and root[key]), None)
        if inner is None:
            break
        root = inner
    table = root.get("state_dict", root)
    if not isinstance(table, dict):
        raise file.error("its state_dict is not a dictionary of tensors")
    if table is root and not any(type(value) is StoredTensor for value in root.values()):
        deeper = _joined(root)
        return (root, deeper) if deeper else (root, root)
    return root, table


def _joined(root: dict[Any, Any]) -> dict[str, StoredTensor]:
    """Returns the tensors of nested dictionaries and tuples; few levels, and no more entries than tensors may be."""
    found: dict[str, StoredTensor] = {}
    waiting: list[tuple[str, Any, int]] = [("", root, 0)]
    looked_at = 0
    while waiting:
        before, value, depth = waiting.pop()
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            looked_at += 1
            if looked_at > MAX_TENSORS:
                return found
            name = f"{before}{key}" if type(key) in (str, int) else ""
            if not name or len(name) > MAX_NAME:
                continue
            if type(item) is StoredTensor:
                found[name] = item
            elif (isinstance(item, dict) or type(item) in (tuple, list)) and depth < MAX_NESTED:
                waiting.append((f"{name}.", item, depth + 1))
    return found


def _natural(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _naturals(values: Any) -> bool:
    return type(values) is tuple and len(values) <= MAX_RANK and all(map(_natural, values))


def _is_empty(value: Any) -> bool:
    return type(value) in (dict, OrderedDict) and not value


def _check_hooks(args: tuple[Any, ...]) -> None:
    requires_grad, hooks = args
    if type(requires_grad) is not bool or not _is_empty(hooks):
        raise ValueError("it rebuilds a tensor with hooks, which are code")
