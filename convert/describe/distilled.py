"""Finds out whether a file is distilled for a few steps: from our own metadata, the metadata's title, or its name."""

import pathlib
from collections.abc import Mapping

from sdjax.few_step import find_word, recipe_of

KEY = "sdjax.few_step"  # in the metadata of adapters that sdjax trained
_TITLES = ("modelspec.title", "ss_output_name")
_NAMELESS = ("pytorch_lora_weights", "adapter_model", "model", "diffusion_pytorch_model", "lora", "adapter")


def few_step_of(metadata: Mapping[str, str], path: pathlib.Path | None) -> str | None:
    """Returns the kind of distillation (`sdjax.few_step`) of a file with this metadata; None if nothing says one.

    A file whose name says nothing, such as pytorch_lora_weights.safetensors, is called as its folder. A folder of a
    hub's cache has the repository's name two folders above.
    """
    if word := metadata.get(KEY):
        try:
            recipe_of(word)
        except ValueError:
            return None
        return word
    return find_word([*(metadata.get(key, "") for key in _TITLES), *_names(path)])


def _names(path: pathlib.Path | None) -> list[str]:
    if path is None:
        return []
    path = path.absolute()
    if not path.is_dir() and path.stem.lower() not in _NAMELESS:
        return [path.stem]
    folders = [folder.name for folder in ([path] if path.is_dir() else []) + list(path.parents[:3])]
    return [folders[0], *(name for name in folders if name.startswith("models--"))]
