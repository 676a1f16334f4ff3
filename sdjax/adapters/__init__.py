"""Additions to a model, such as low-rank adapters and FreeU. Each is a patch over the layers of a network."""

from sdjax.adapters.delta import Adapter, AdapterError, Delta, LowRank, merge
from sdjax.adapters.freeu import FreeU, FreeUNumbers
from sdjax.adapters.lora import ImageLoRA, LoRA, for_images
from sdjax.adapters.patch import Interceptor, Patch, patched, path_of, report, reporting

__all__ = [
    "Adapter",
    "AdapterError",
    "Delta",
    "FreeU",
    "FreeUNumbers",
    "ImageLoRA",
    "Interceptor",
    "LoRA",
    "LowRank",
    "Patch",
    "for_images",
    "merge",
    "patched",
    "path_of",
    "report",
    "reporting",
]
