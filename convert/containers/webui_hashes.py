"""The hashes by which kohya's scripts, A1111's web UI and Civitai know a safetensors file of an adapter."""

import hashlib
from collections.abc import Mapping

import numpy as np
import safetensors.numpy

TRAINING = "ss_"  # the prefix of metadata that never change after training
_OLD_PLACE = slice(0x100000, 0x110000)  # of the file; what A1111's first hash of a checkpoint was made of


def webui_hashes(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> dict[str, str]:
    """Returns the metadata `sshs_model_hash` and `sshs_legacy_hash` of a file with these tensors.

    They are of the file that the safetensors library writes of the tensors and of those `metadata` whose names begin
    with `ss_`. The first is the SHA-256 of everything after the header. A1111 shows its first 12 digits, and Civitai
    finds files by it (AutoV3). The second is the first 8 digits of the SHA-256 of 64 KiB at 1 MiB. Source:
    kohya-ss/sd-scripts (library/train_util.py: precalculate_safetensors_hashes).
    """
    kept = {name: value for name, value in metadata.items() if name.startswith(TRAINING)}
    data = safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in tensors.items()}, kept)
    view = memoryview(data)
    start = 8 + int.from_bytes(view[:8], "little")
    return {
        "sshs_model_hash": hashlib.sha256(view[start:]).hexdigest(),
        "sshs_legacy_hash": hashlib.sha256(view[_OLD_PLACE]).hexdigest()[:8],
    }
