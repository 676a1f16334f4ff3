"""Parameters that are read when they are needed, and refusing a file that does not hold them all."""

import functools

import numpy as np

from sdjax.convert.containers.lazy import LazyTensor, is_floating
from sdjax.convert.errors import listed, shown
from sdjax.convert.names import tables
from sdjax.convert.names.matching import Match
from sdjax.convert.sources import Source

_WITHOUT = {
    "unet": "it has no UNet, which makes it no model",
    "vae": "it has no autoencoder; give one by vae= (--vae on the command line)",
    "text": "it has no text encoder, which must come from the whole checkpoint",
}


def refuse(source: Source, found: Match, config_origin: str) -> None:
    """Raises CheckpointError, naming every difference, unless the file holds all that `config_origin` describes."""
    problems = [_WITHOUT[part] for part in found.missing_parts] + list(found.problems)
    if problems:
        count = len(problems)
        raise source.error(
            f"it does not hold the model that {config_origin} describes, with {count} difference{'s'[: count > 1]}: "
            f"{listed(problems)}"
        )


def matched_leaves(source: Source, found: Match, kind: np.dtype | None) -> dict[str, LazyTensor]:
    """Returns the parameters by path. Raises CheckpointError where one is no floating-point tensor."""
    tensors, dtypes, leaves = source.tensors, source.tensors.dtypes, {}
    for entry, name in found.names.items():
        dtype = dtypes[name]
        if not is_floating(dtype):
            raise source.error(
                f"{shown(name)} holds {dtype.name} numbers; a parameter is a floating-point tensor "
                "(of a quantised model, name the one in float32, float16 or bfloat16)"
            )
        for index, parameter in enumerate(entry.parameters):

            def read(entry: tables.Entry = entry, name: str = name, index: int = index) -> np.ndarray:
                return entry.split(tensors[name])[index]

            last = index == len(entry.parameters) - 1
            release = functools.partial(tensors.release, name) if last else lambda: None
            leaves[parameter.path] = LazyTensor(parameter.shape, dtype, read, release, source.spelled(name)).cast(kind)
    return dict(sorted(leaves.items()))
