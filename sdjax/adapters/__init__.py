"""Additions to a model, such as low-rank adapters and FreeU. Each is a patch over the layers of a network."""

from sdjax.adapters.deep_cache import DeepCache
from sdjax.adapters.deep_shrink import DeepShrink
from sdjax.adapters.delta import Adapter, AdapterError, Delta, Difference, LowRank, Strength, merge
from sdjax.adapters.freeu import FreeU, FreeUNumbers
from sdjax.adapters.hidiffusion import RAUNet, WindowAttention
from sdjax.adapters.hypertile import HyperTile
from sdjax.adapters.image_arrays import for_images, share_by_images
from sdjax.adapters.lora import ImageLoRA, LoRA, SharedLoRA
from sdjax.adapters.patch import Interceptor, Patch, Timed, patched, path_of, report, reporting
from sdjax.adapters.seamless import Seamless
from sdjax.adapters.t_gate import TGate
from sdjax.adapters.table import PATCHES, Setting, make_settings
from sdjax.adapters.token_downsampling import TokenDownsampling
from sdjax.adapters.token_merging import TokenMerging

__all__ = [
    "PATCHES",
    "Adapter",
    "AdapterError",
    "DeepCache",
    "DeepShrink",
    "Delta",
    "Difference",
    "FreeU",
    "FreeUNumbers",
    "HyperTile",
    "ImageLoRA",
    "Interceptor",
    "LoRA",
    "LowRank",
    "Patch",
    "RAUNet",
    "Seamless",
    "Setting",
    "SharedLoRA",
    "Strength",
    "TGate",
    "Timed",
    "TokenDownsampling",
    "TokenMerging",
    "WindowAttention",
    "for_images",
    "make_settings",
    "merge",
    "patched",
    "path_of",
    "report",
    "reporting",
    "share_by_images",
]
