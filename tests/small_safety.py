"""The small safety checker of golden/safety.npz, in memory and as a diffusers folder."""

import json
import pathlib

import numpy as np
from parity_towers import vision_config
from safetensors.numpy import save_file

from sdjax.convert.describe.vision_config import transformers_file

import reference


def checker() -> tuple[dict, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns (specification, tensors, golden arrays)."""
    arrays = reference.golden("safety")
    spec = json.loads(str(arrays["spec"]))
    kept = {name.removeprefix("tensor/"): array for name, array in arrays.items() if name.startswith("tensor/")}
    return spec, reference.fill_spec(spec) | kept, arrays


def write(folder: pathlib.Path, spec: dict, tensors: dict[str, np.ndarray]) -> pathlib.Path:
    """Writes a checker as a diffusers folder's and returns the folder."""
    vision = transformers_file(vision_config(spec))
    projection = vision.pop("projection_dim")
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"vision_config": vision, "projection_dim": projection}))
    save_file(tensors, folder / "model.safetensors")
    return folder
