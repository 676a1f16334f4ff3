"""Reads hypernetworks as AUTOMATIC1111's web UI writes them: for each width, layers before to_k and before to_v.

Names are `WIDTH.0.linear.N.weight` and `.bias` for keys, `WIDTH.1...` for values. N also counts activations and
dropout, which have no tensors. The oldest files have `linear1` and `linear2`. Matrices are linear layers, vectors are
norms.
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from sdjax.adapters.hypernetwork import ACTIVATIONS, Hypernetwork, Layer
from sdjax.config import ModelConfig
from sdjax.convert.adapters.nested import flattened
from sdjax.convert.containers.lazy import is_finite, is_floating
from sdjax.convert.containers.local_models import local_path
from sdjax.convert.containers.reading import read
from sdjax.convert.errors import CheckpointError, listed, shown

_NAME = re.compile(r"(\d{1,6})\.([01])\.(?:linear\.(\d{1,4})|linear(1|2))\.(weight|bias)$")
_BESIDE = re.compile(r"(optimizer_state_dict|layer_structure|dropout_structure|optional_info)\b")


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedHypernetwork:
    """A hypernetwork, its name (the file's without its ending), and the settings that its file holds."""

    network: Hypernetwork
    name: str
    metadata: Mapping[str, str]

    def lines(self) -> list[str]:
        """Returns its facts as lines."""
        first = next(iter(self.network.layers.values()))[0]
        sizes = " ".join(str(layer.kernel.shape[1]) for layer in first)
        normed = ", with norms" if any(layer.scale is not None for layer in first) else ""
        return [
            f"hypernetwork for widths {', '.join(map(str, sorted(self.network.layers)))}",
            f"{len(first)} layers (to {sizes} for the first), activation {self.network.activation}{normed}",
        ]


def load_hypernetwork(
    source: str | os.PathLike[str] | Mapping[Any, Any], config: ModelConfig | None = None, *, name: str = "hypernetwork"
) -> LoadedHypernetwork:
    """Returns the hypernetwork in a file, or in what torch.load returns of it with arrays for tensors.

    With `config`, it must fit models of this description: one of its widths is that of their contexts. Nothing in a
    file is executed. Raises CheckpointError for anything that cannot be used, naming the tensors.
    """
    if isinstance(source, Mapping):
        return _placed(*flattened(source), config, name, None)
    path = local_path(source)
    with read(path) as file:
        arrays = {key: np.array(stored.array()) for key, stored in file.tensors.items()}
        texts = dict(file.metadata)
    return _placed(arrays, texts, config, path.stem, path)


def _placed(
    arrays: Mapping[str, np.ndarray], texts: Mapping[str, str], config: ModelConfig | None, name: str,
    path: pathlib.Path | None,
) -> LoadedHypernetwork:  # fmt: skip
    activation = texts.get("activation_func", "linear").lower()
    activation = "linear" if activation == "none" else activation
    if activation not in ACTIVATIONS:
        raise CheckpointError(
            f"its activation {shown(activation)} is not known; the known ones are {', '.join(ACTIVATIONS)}", path
        )
    last_too = texts.get("activate_output", "True").lower() not in ("false", "0")
    grouped: dict[int, tuple[dict[int, dict[str, np.ndarray]], dict[int, dict[str, np.ndarray]]]] = {}
    problems = []
    for key, array in arrays.items():
        found = _NAME.match(key)
        if found is None:
            if not _BESIDE.match(key):
                problems.append(f"{shown(key)} is no tensor of a hypernetwork")
            continue
        if not is_floating(array.dtype) or not is_finite(array):
            problems.append(f"{shown(key)} holds something else than finite numbers")
        width, which, number, old, piece = found.groups()
        at = int(number) if number is not None else int(old) - 1
        grouped.setdefault(int(width), ({}, {}))[int(which)].setdefault(at, {})[piece] = array.astype(np.float32)
    layers = {}
    for width, nets in grouped.items():
        made = []
        for which, pieces in enumerate(nets):
            try:
                made.append(_layers([pieces[at] for at in sorted(pieces)], width, last_too))
            except ValueError as error:
                problems.append(f"{width}.{which}: {error}")
        if len(made) == 2:
            layers[width] = (made[0], made[1])
    if problems or not layers:
        raise CheckpointError(f"it is no hypernetwork: {listed(problems) or 'it holds no layers'}", path)
    if config is not None and config.unet.context_dim not in layers:
        raise CheckpointError(
            f"the hypernetwork {shown(name)} is for widths {', '.join(map(str, sorted(layers)))}; the contexts of this "
            f"model ({config.name}) have {config.unet.context_dim}",
            path,
        )
    return LoadedHypernetwork(Hypernetwork(layers, activation), name, dict(texts))


def _layers(pieces: list[dict[str, np.ndarray]], width: int, last_too: bool) -> tuple[Layer, ...]:
    """Returns the layers of one network, from width to width. Raises ValueError for pieces that do not fit."""
    out: list[Layer] = []
    now = width
    for piece in pieces:
        if set(piece) != {"weight", "bias"} or piece["bias"].ndim != 1 or piece["weight"].ndim not in (1, 2):
            raise ValueError("a layer is a weight and a bias, a matrix and a vector or two vectors")
        weight, bias = piece["weight"], piece["bias"]
        if weight.ndim == 2 and weight.shape == (len(bias), now):
            out.append(Layer(jnp.asarray(weight.T), jnp.asarray(bias), is_activated=True))
            now = len(bias)
        elif weight.ndim == 1 and out and out[-1].scale is None and weight.shape == bias.shape == (now,):
            out[-1] = dataclasses.replace(out[-1], scale=jnp.asarray(weight), shift=jnp.asarray(bias))
        else:
            raise ValueError(f"a layer of {list(weight.shape)} does not fit behind {now} numbers")
    if not out or now != width:
        raise ValueError(f"it ends with {now} numbers, not {width}")
    if not last_too:
        out[-1] = dataclasses.replace(out[-1], is_activated=False)
    return tuple(out)
