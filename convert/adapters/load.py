"""Reading adapters: a file of the LoRA family, or a folder as PEFT writes it, as changes by the paths of parameters."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from sdjax.adapters.delta import Adapter, Delta, Difference, LowRank
from sdjax.config import ModelConfig
from sdjax.convert.adapters.read_names import canonical, module_paths, peft_scale
from sdjax.convert.adapters.write_names import FOLDERS, HEADER
from sdjax.convert.containers.lazy import is_floating
from sdjax.convert.containers.reading import read
from sdjax.convert.containers.strict_json import read_json
from sdjax.convert.errors import CheckpointError, listed, printable
from sdjax.convert.names import axes, tables

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"


@dataclasses.dataclass(frozen=True)
class LoadedAdapter:
    """An adapter as a file holds it.

    Attributes:
        adapter: the changes by path. Factors have the file's type.
        embeddings: bundled embeddings, rows [n, d] by word.
        metadata: the header's text by key.
        notices: messages for the user.
    """

    adapter: Adapter
    embeddings: Mapping[str, np.ndarray]
    metadata: Mapping[str, str]
    notices: tuple[str, ...] = ()


def load_adapter(path: str | os.PathLike[str], config: ModelConfig) -> LoadedAdapter:
    """Returns the adapter in a file or in PEFT's folder, for a model of this description.

    Nothing in it is executed. Raises CheckpointError, naming everything as the file spells it, for tensors that no
    layer of the model has, factors that do not fit, halves of pairs, and numbers that are not finite.
    """
    folder = pathlib.Path(path)
    if not folder.is_dir():
        return _Reader(config).load([path], path)
    files = [folder / name / TENSORS for name in ("", *FOLDERS.values()) if (folder / name / TENSORS).is_file()]
    if not files:
        raise CheckpointError(f"it holds no {TENSORS}, as PEFT's adapters do", folder)
    return _Reader(config).load(files, path)


class _Reader:
    """Collects a file's tensors by module and suffix, and the problems with them."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.paths = module_paths(config)
        self.entries = {
            entry.parameters[0].path: entry
            for part in ("unet", "text")
            for entry in tables.part_entries(part, getattr(config, part), "diffusers")
        }
        self.problems: list[str] = []
        self.notices: list[str] = []

    def load(self, files: Sequence[str | os.PathLike[str]], path: str | os.PathLike[str]) -> LoadedAdapter:
        """Returns the adapter in these files, which messages call `path`."""
        modules: dict[str, dict[str, tuple[str, np.ndarray]]] = {}
        embeddings: dict[str, np.ndarray] = {}
        metadata: dict[str, str] = {}
        described: dict[str, Mapping[str, Any]] = {}
        for place in files:
            with read(place) as file:
                metadata |= file.metadata
                own = _peft_config(pathlib.Path(place).parent) if pathlib.Path(place).name == TENSORS else {}
                for name, stored in file.tensors.items():
                    array = np.array(stored.array())
                    if name.startswith("bundle_emb."):
                        embeddings[name.split(".")[1]] = np.atleast_2d(array)
                        continue
                    module, suffix = canonical(name)
                    known = self.paths.get(module)
                    if known is None or suffix is None:
                        self.problems.append(f"{printable(name)} {list(array.shape)} is unknown")
                    elif not np.isfinite(array.astype(np.float32)).all():
                        self.problems.append(f"{printable(name)} holds numbers that are not finite")
                    elif suffix in modules.setdefault(known, {}):
                        self.problems.append(f"{printable(name)} is there twice, also as {modules[known][suffix][0]}")
                    else:
                        modules[known][suffix] = (name, array)
                        if own:
                            described[known] = own
        header = _header(metadata, path)
        adapter: dict[str, Delta] = {}
        for known, tensors in modules.items():
            part = FOLDERS[known.partition("/")[0]]
            config = described.get(known, header.get(part, {}))
            adapter |= self._changes(known, tensors, config)
        if self.problems:
            raise CheckpointError(f"it does not fit the model: {listed(self.problems)}", path)
        if not adapter and not embeddings:
            raise CheckpointError("it holds no adapter that is known here", path)
        told = {key: text for key, text in metadata.items() if key not in (HEADER, "format")}
        return LoadedAdapter(adapter, embeddings, told, tuple(self.notices))

    def _changes(self, module: str, tensors: dict[str, tuple[str, np.ndarray]], config: Mapping[str, Any]) -> Adapter:
        """Returns the changes of a module's leaves."""
        out: dict[str, Delta] = {}
        arrays = {suffix: array for suffix, (_, array) in tensors.items()}
        names = {suffix: printable(name) for suffix, (name, _) in tensors.items()}
        for suffix, leaf in _WHOLE.items():
            if suffix in arrays:
                path = f"{module}/{leaf}"
                entry = self.entries.get(path)
                if entry is None or not entry.accepts(arrays[suffix].shape):
                    wanted = "no such parameter" if entry is None else list(entry.shape)
                    self.problems.append(f"{names[suffix]} is {list(arrays[suffix].shape)} instead of {wanted}")
                else:
                    out[path] = Difference(jnp.asarray(axes.to_flax(entry.parameters[0].kind, arrays[suffix])))
        if {"down", "up", "mid"} & set(arrays):
            for half, other in (("down", "up"), ("up", "down")):
                if half not in arrays:
                    self.problems.append(f"{names[other] if other in names else names['mid']} has no other half")
                    return out
            change = self._low_rank(module, arrays, names, config)
            if change is not None:
                out[f"{module}/kernel"] = change
        elif "alpha" in arrays and not out:
            self.problems.append(f"{names['alpha']} has no factors")
        return out

    def _low_rank(
        self, module: str, arrays: Mapping[str, np.ndarray], names: Mapping[str, str], config: Mapping[str, Any]
    ) -> LowRank | None:
        entry = self.entries.get(f"{module}/kernel")
        if entry is None:
            self.problems.append(f"{names['down']}: the model has no kernel there")
            return None
        kind, shape = entry.parameters[0].kind, entry.parameters[0].shape
        down, up, rank = arrays["down"], arrays["up"], arrays["down"].shape[0]
        if "mid" in arrays and arrays["mid"].ndim == 4 and down.ndim == 4:
            down = np.einsum("mnhw,ni->mihw", arrays["mid"].astype(np.float32), down[:, :, 0, 0].astype(np.float32))
        flat = axes.to_flax(kind, down) if down.ndim == 4 or kind == "matrix" else down
        up = up.reshape(up.shape[:2]).T if up.ndim in (2, 4) else up
        if (
            rank == 0
            or (*flat.shape[:-1], up.shape[-1]) != shape
            or flat.shape[-1] != up.shape[0]
            or not is_floating(down.dtype)
        ):
            both = " and ".join(f"{names[half]} {list(arrays[half].shape)}" for half in ("down", "up"))
            self.problems.append(f"{both} do not fit a kernel {list(entry.shape)}")
            return None
        if "alpha" in arrays:
            scale = float(arrays["alpha"].astype(np.float32).reshape(-1)[0]) / rank
            if scale == 0:
                self.notices.append(f"{names['alpha']} is 0: that layer is not changed")
        else:
            scale = peft_scale(config, entry.name.partition("/")[2].rpartition(".")[0], rank)
        return LowRank(jnp.asarray(flat), jnp.asarray(up), scale)


_WHOLE = {"diff": "kernel", "diff_b": "bias", "w_norm": "scale", "b_norm": "bias"}


def _peft_config(folder: pathlib.Path) -> Mapping[str, Any]:
    """Returns the contents of adapter_config.json, nothing if there is none. Raises CheckpointError."""
    path = folder / CONFIG
    if not path.is_file():
        return {}
    if path.stat().st_size > 2**22:
        raise CheckpointError("it is too large for a description of an adapter", path)
    return read_json(path.read_bytes(), lambda reason: CheckpointError(reason, path))


def _header(metadata: Mapping[str, str], path: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    """Returns PEFT's descriptions of the networks by diffusers' names, from a header."""
    out: dict[str, dict[str, Any]] = {}
    described = read_json(
        metadata.get(HEADER, "{}").encode(),
        lambda reason: CheckpointError(f"its description of ranks and alphas: {reason}", path),
    )
    for key, value in described.items():
        part, dot, name = key.partition(".")
        if dot:
            out.setdefault(part, {})[name] = value
    return out
