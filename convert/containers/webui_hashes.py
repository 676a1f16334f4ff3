"""The hashes by which kohya's scripts, A1111's web UI and Civitai know the file of an adapter or an embedding."""

import hashlib
import os
import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import safetensors.numpy

TRAINING = "ss_"  # the prefix of metadata that never change after training
SHORT = 12  # digits of a hash in A1111's texts about pictures
_PIECE = 2**20  # bytes that are read at a time
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


class FileHashes(NamedTuple):
    """The SHA-256 of a file, and of what stands after the header of a safetensors file (of others: of the file)."""

    whole: str
    tensors: str

    @property
    def named(self) -> dict[str, str]:
        """The short forms by Civitai's names: AutoV2 of the file, AutoV3 of the tensors."""
        return {"AutoV2": self.whole[:10], "AutoV3": self.tensors[:SHORT]}


def file_hashes(path: str | os.PathLike[str]) -> FileHashes:
    """Returns the hashes of a file. Raises OSError if it cannot be read."""
    whole, tensors = hashlib.sha256(), hashlib.sha256()
    with open(path, "rb") as file:
        header = file.read(8)
        start = 8 + int.from_bytes(header, "little") if os.fspath(path).endswith(".safetensors") else 0
        file.seek(0)
        at = 0
        while piece := file.read(_PIECE):
            whole.update(piece)
            tensors.update(memoryview(piece)[max(start - at, 0) :])
            at += len(piece)
    return FileHashes(whole.hexdigest(), tensors.hexdigest())


def short_hash(metadata: Mapping[str, str], hashes: Mapping[str, str]) -> str:
    """Returns the hash of an adapter's file in A1111's texts: that of its metadata, or AutoV3; "" without a file.

    Source: the web UI's extensions-builtin/Lora/network.py.
    """
    said = metadata.get("sshs_model_hash", "")
    return said[:SHORT] if re.fullmatch(r"[0-9a-f]{12,64}", said) else hashes.get("AutoV3", "")
