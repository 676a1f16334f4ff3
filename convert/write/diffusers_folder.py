"""Folders as diffusers reads them."""

import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from sdjax._version import __version__
from sdjax.config import ModelConfig
from sdjax.convert.bundle import Bundle
from sdjax.convert.checkpoint import EXTRA, FORMAT
from sdjax.convert.containers.diffusers_folder import OWN_SETTINGS
from sdjax.convert.containers.lazy import LazyTensor
from sdjax.convert.describe import diffusers_config, own_settings
from sdjax.convert.names import naming
from sdjax.convert.write.file_metadata import STEMS, component_metadata
from sdjax.convert.write.native_folder import write_beside, write_json
from sdjax.convert.write.safetensors_writer import Manifest, tensors_of, write_safetensors
from sdjax.convert.write.single_file import DEPTH_IN_FOLDERS
from sdjax.prompts.tokenizer import CONFIG as TOKENIZER_CONFIG

_FILE = re.compile(r"([A-Za-z0-9_-]{1,60}/)?[A-Za-z0-9_-]{1,60}\.json")  # a native folder's own list is not trusted


def write_diffusers(model: Bundle, folder: pathlib.Path, ema_names: bool, manifest: Manifest | None) -> None:
    """Fills a diffusers folder. Such a folder holds one set of the UNet's weights, whatever `ema_names`."""
    files = _files(model)
    by_component: dict[str, dict[str, LazyTensor]] = {}
    others: dict[str, LazyTensor] = {}
    for name, leaf in tensors_of(model, "diffusers").items():
        component, _, rest = name.partition("/")
        by_component.setdefault(component, {})[rest] = leaf
    for name, leaf in model.extras.items():
        component, slash, rest = _in_folder(name, model.config).partition("/")
        if slash and (component in by_component or f"{component}/config.json" in files):
            by_component.setdefault(component, {}).setdefault(rest, leaf)
        else:
            others[name] = leaf
    for name, content in files.items():
        write_json(folder / name, content)
    write_beside(folder, model)
    if own := _own_settings(files, folder, model.config):
        content = {FORMAT: {"format": 1, "version": __version__}, "model": own}
        write_json(folder / OWN_SETTINGS, content)
    for component, tensors in by_component.items():
        (folder / component).mkdir(exist_ok=True)
        config = files.get(f"{component}/config.json", {})
        stem = STEMS.get(component, "diffusion_pytorch_model" if "_class_name" in config else "model")
        path = folder / component / f"{stem}.safetensors"
        metadata = component_metadata(model, component)
        write_safetensors(path, tensors, metadata, manifest, f"{component}/", model.losses)
    if others:
        write_safetensors(folder / EXTRA, others, {}, manifest, losses=model.losses)


def _own_settings(files: Mapping[str, Any], folder: pathlib.Path, config: ModelConfig) -> dict[str, Any]:
    """Returns the settings that the written files of a diffusers folder, with its tokenizer's, do not hold."""
    tokenizer = folder / "tokenizer" / TOKENIZER_CONFIG
    said = {f"tokenizer/{TOKENIZER_CONFIG}": json.loads(tokenizer.read_bytes())} if tokenizer.is_file() else {}
    described, _ = diffusers_config.config_from_diffusers({**files, **said})
    return own_settings.differing(described, config)


def _files(model: Bundle) -> dict[str, Any]:
    """Returns a diffusers folder's JSON files: those that came with the model, as far as they still describe it."""
    ours: dict[str, Any] = diffusers_config.diffusers_files(model.config)
    given = {
        name: content
        for name, content in model.files.items()
        if _FILE.fullmatch(name) and isinstance(content, Mapping) and not name.startswith("tokenizer/")
    }
    if "model_index.json" not in given:
        return ours
    try:
        described, _ = diffusers_config.config_from_diffusers(given)
    except ValueError:
        return ours
    kinds = [(c.unet.in_channels, c.unet.label_dim) for c in (described, model.config)]
    if kinds[0] != kinds[1]:  # trained into a model of another kind, whose pipeline is another
        return ours
    files = {**ours, **given}
    for part, component in naming.COMPONENTS.items():
        if getattr(described, part) != getattr(model.config, part):
            name = f"{component}/config.json"
            if name in ours:
                files[name] = ours[name]
            else:  # an optional part that is not there
                files.pop(name, None)
    if described.schedule != model.config.schedule:
        name = "scheduler/scheduler_config.json"
        fresh = ours[name]
        files[name] = {**given.get(name, {}), **{k: v for k, v in fresh.items() if k != "_class_name"}}
        files[name].setdefault("_class_name", fresh["_class_name"])
    return files


def _in_folder(name: str, config: ModelConfig) -> str:
    """Returns a folder's name for an extra tensor, component/name; a single file's where folders have no place."""
    return name if config.depth is None else DEPTH_IN_FOLDERS.get(name, name)
