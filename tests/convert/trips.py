"""From layout to layout and back: what every model's files must keep."""

import json
import pathlib

import numpy as np
from small_models import write

from sdjax import convert
from sdjax.config import ModelConfig
from sdjax.convert.bundle import Bundle


def equal(a: pathlib.Path, b: pathlib.Path) -> bool:
    """Returns whether two checkpoints hold the same tensors, byte for byte."""
    return convert.manifest(convert.read(a)) == convert.manifest(convert.read(b))


def check_round_trips(folder: pathlib.Path, tensors: dict[str, np.ndarray], config: ModelConfig) -> None:
    """Takes an ldm file through every layout and back, by both ways; leaves "native" and "diffusers" in the folder."""
    start = write(folder / "a.safetensors", tensors)
    convert.convert(start, folder / "native", config=config)
    convert.convert(folder / "native", folder / "b.safetensors")
    convert.convert(folder / "b.safetensors", folder / "diffusers", to="diffusers")
    convert.convert(folder / "diffusers", folder / "c.safetensors")
    assert equal(start, folder / "b.safetensors")
    assert equal(start, folder / "c.safetensors")
    convert.convert(folder / "diffusers", folder / "native2")
    convert.convert(folder / "native2", folder / "diffusers2", to="diffusers")
    assert equal(folder / "diffusers", folder / "diffusers2")
    assert equal(folder / "native", folder / "native2")


def check_without(
    part: str, component: str, folder: pathlib.Path, tensors: dict[str, np.ndarray], config: ModelConfig
) -> Bundle:
    """Returns the model of an ldm file without a part, which every layout keeps as it is.

    `part` is the description's field, `component` its name in a diffusers folder.
    """
    start = write(folder / "a.safetensors", tensors)
    for to, target in (("native", "native"), ("diffusers", "diffusers"), ("ldm", "b.safetensors")):
        convert.convert(start, folder / target, to=to, config=config)
        assert getattr(convert.load(folder / target)[0], part) is None
    index = json.loads((folder / "diffusers/model_index.json").read_text())
    assert index[component] == [None, None]
    assert equal(start, folder / "b.safetensors")
    return convert.load_model(start, config)
