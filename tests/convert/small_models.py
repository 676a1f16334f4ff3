"""Small checkpoints of every family under the names that released files have, for the converter's tests."""

import functools
import pathlib

import numpy as np
from parity_models import config_from_spec
from safetensors.numpy import save_file

from sdjax.config import ModelConfig

import reference

FAMILIES = ("v1", "v2_base", "v2_v", "v2_inpaint", "v2_depth", "v2_unclip", "x4_upscaler")


@functools.cache
def model(family: str) -> tuple[ModelConfig, dict[str, np.ndarray]]:
    """Returns the description and an ldm file's tensors, with buffers beside the parameters as released files have."""
    entry = reference.families()[family]
    tensors = reference.fill_all(entry["manifest"])
    tensors["alphas_cumprod"] = np.linspace(1, 0, 1000, dtype=np.float32)
    if family == "v1":
        tensors["cond_stage_model.transformer.text_model.embeddings.position_ids"] = np.arange(77)[None]
    return config_from_spec(entry["spec"]), tensors


def write(path: pathlib.Path, tensors: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> pathlib.Path:
    """Writes a safetensors file and returns its path."""
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, path, metadata)
    return path
