"""Completes networks whose files hold only changes to a UNet's weights: differences, and control-LoRAs."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from sdjax.convert.containers.lazy import LazyTensor
from sdjax.convert.errors import CheckpointError, listed, printable
from sdjax.convert.names.tables import Entry, Table
from sdjax.nn.controlnet import COPIED
from sdjax.typing import Params

Source = Literal["whole", "difference", "lora"]  # what a file holds of a ControlNet


def from_unet(
    source: Source, tensors: Mapping[str, LazyTensor], table: Table, unet: Params,
    error: Callable[[str], CheckpointError],
) -> dict[str, LazyTensor]:  # fmt: skip
    """Returns the tensors of the whole ControlNet, by the table's names, with what the table does not have.

    A difference holds, for all weights that the UNet has too, what is added to them. A control-LoRA holds some weights
    whole; for others two matrices `.up` and `.down`, whose product is added to the UNet's weight, all flattened from
    their second axis; what it does not hold is the UNet's. The UNet's weights are taken as they are, changed by a
    merged LoRA for example. Raises CheckpointError for matrices that do not fit.
    """
    out, problems = dict(tensors), []
    for entry in table.entries:
        path = entry.parameters[0].path.partition("/")[2]
        if not path.startswith(COPIED):
            continue
        base = functools.partial(_stored, entry, unet, path)
        stem = entry.name.removesuffix(".weight")
        up, down = (out.get(f"{stem}.{factor}") for factor in ("up", "down"))
        if source == "difference":
            change = out.get(entry.name)
            if change is not None and change.shape == entry.shape:
                out[entry.name] = total(entry.name, entry.shape, base, change.read)
        elif entry.name not in out and up is not None and down is not None:
            if not _fit(entry.shape, up.shape, down.shape):
                problems.append(
                    f"{printable(up.name)} {list(up.shape)} times {printable(down.name)} {list(down.shape)} does not "
                    f"fit a weight {list(entry.shape)}"
                )
            del out[f"{stem}.up"], out[f"{stem}.down"]
            out[entry.name] = total(entry.name, entry.shape, base, functools.partial(_product, up, down))
        elif entry.name not in out:
            out[entry.name] = total(entry.name, entry.shape, base, lambda: np.zeros((), np.float32))
    if problems:
        raise error(f"it is no control-LoRA of this model: {listed(problems)}")
    return out


def _fit(shape: tuple[int, ...], up: tuple[int, ...], down: tuple[int, ...]) -> bool:
    if min(len(up), len(down), len(shape)) < 2:
        return False
    flat = lambda s: (s[0], int(np.prod(s[1:])))  # noqa: E731
    return (flat(up)[0], flat(up)[1], flat(down)[1]) == (shape[0], down[0], flat(shape)[1])


def _product(up: LazyTensor, down: LazyTensor) -> np.ndarray:
    first, second = (one.read().astype(np.float32).reshape(one.shape[0], -1) for one in (up, down))
    return first @ second


def _stored(entry: Entry, unet: Params, path: str) -> np.ndarray:
    """Returns the UNet's weight as the entry's tensor, of as many input channels."""
    leaf: Any = unet
    for name in path.split("/"):
        leaf = leaf[name]
    array = np.asarray(leaf)
    if path == "conv_in/kernel":
        array = array[:, :, : entry.shape[1]]
    return entry.join([array])


def total(
    name: str, shape: tuple[int, ...], base: Callable[[], np.ndarray], change: Callable[[], np.ndarray]
) -> LazyTensor:
    """Returns a weight with a change added to it, float32 until it is cast.

    The weight may be smaller than `shape`, with fewer input channels: those that it lacks are zeros.
    """

    def read() -> np.ndarray:
        weight = base().astype(np.float32)
        missing = [(0, want - there) for want, there in zip(shape, weight.shape, strict=True)]
        added = change().astype(np.float32)
        return np.pad(weight, missing) + (added.reshape(shape) if added.ndim else added)

    return LazyTensor(shape, np.dtype(np.float32), read, name=name)
