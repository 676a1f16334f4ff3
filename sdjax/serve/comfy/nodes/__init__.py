"""ComfyUI's nodes. Importing this package fills `NODES`, the table of all."""

from sdjax.serve.comfy.definitions import NODES
from sdjax.serve.comfy.nodes import (
    adapters,
    changes,
    conditioning,
    controlling,
    files,
    images,
    latents,
    loaders,
    masks,
    merging,
    pixels,
    samplers,
    saving,
    sigmas,
    values,
)

__all__ = [
    "NODES",
    "adapters", "changes", "conditioning", "controlling", "files", "images", "latents", "loaders", "masks", "merging",
    "pixels", "samplers", "saving", "sigmas", "values",
]  # fmt: skip
