"""Reports what the file of an adapter or of another addition holds, whichever model it is for."""

import os
from collections.abc import Callable, Sequence

from sdjax.convert.adapters.embedding import load_embedding
from sdjax.convert.adapters.hypernetwork import load_hypernetwork
from sdjax.convert.adapters.load import load_for_released
from sdjax.convert.describe.other_kinds import (
    AS_ADAPTER,
    AS_CONTROL,
    AS_EMBEDDING,
    AS_HYPERNETWORK,
    AS_IP_ADAPTER,
    AS_MOTION,
    AS_MOTION_LORA,
    AS_T2I,
    AS_TAESD,
    AS_UPSCALER,
)
from sdjax.convert.errors import CheckpointError, FileKind
from sdjax.convert.parts.controlnet import find_controlnet
from sdjax.convert.parts.esrgan import load_esrgan
from sdjax.convert.parts.ip_adapter import find_ip_adapter
from sdjax.convert.parts.motion import motion_lines
from sdjax.convert.parts.motion_lora import load_motion_lora
from sdjax.convert.parts.t2i import find_t2i
from sdjax.convert.parts.taesd import load_taesd


def lines_of(path: str | os.PathLike[str], kind: FileKind | None) -> Sequence[str]:
    """Returns the facts of a file of this kind as lines, or why it cannot be used; none for other kinds."""
    readers: dict[str, Callable[[str | os.PathLike[str]], Sequence[str]]] = {
        AS_ADAPTER: _adapter_lines,
        AS_EMBEDDING: lambda path: load_embedding(path).lines(),
        AS_HYPERNETWORK: lambda path: load_hypernetwork(path).lines(),
        AS_IP_ADAPTER: lambda path: find_ip_adapter(path).lines(),
        AS_MOTION: motion_lines,
        AS_MOTION_LORA: lambda path: load_motion_lora(path).lines(),
        AS_TAESD: lambda path: load_taesd(path).lines(),
        AS_UPSCALER: lambda path: load_esrgan(path).lines(),
        AS_CONTROL: lambda path: find_controlnet(path).lines(),
        AS_T2I: lambda path: find_t2i(path).lines(),
    }
    if kind is None or kind.advice not in readers:
        return ()
    try:
        return readers[kind.advice](path)
    except CheckpointError as error:
        return [str(error)]


def _adapter_lines(path: str | os.PathLike[str]) -> Sequence[str]:
    config, (loaded,) = load_for_released(path)
    words = [f"embedding of {word}: {len(vectors)} vectors" for word, vectors in loaded.embeddings.items()]
    return [f"for: {config.name}", *loaded.info.lines(), *words, *loaded.notices]
