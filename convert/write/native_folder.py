"""Writes native folders, and the files beside the weights in a folder of any layout."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from sdjax._version import __version__
from sdjax.convert.bundle import Bundle
from sdjax.convert.checkpoint import EXTRA, FORMAT
from sdjax.convert.write.safetensors_writer import Manifest, tensors_of, write_safetensors
from sdjax.prompts.tokenizer import CLIP_TOKENS


def write_native(model: Bundle, folder: pathlib.Path, ema_names: bool, manifest: Manifest | None) -> None:
    """Fills a native folder. Such a folder holds one set of the UNet's weights, whatever `ema_names`."""
    write_safetensors(
        folder / "model.safetensors", tensors_of(model, "native"), model.metadata, manifest, losses=model.losses
    )
    if model.extras:
        write_safetensors(folder / EXTRA, model.extras, {}, manifest, losses=model.losses)
    content = {FORMAT: {"format": 1, "version": __version__}, "model": model.config.to_dict()}
    if model.files:
        content["files"] = dict(model.files)
    write_json(folder / "config.json", content)
    write_beside(folder, model)


def write_beside(folder: pathlib.Path, model: Bundle) -> None:
    """Writes tokenizer, licences and model cards into a folder."""
    pad = "!" if model.config.text.pad_token_id == 0 else "<|endoftext|>"
    if has_tokenizer(model):
        model.tokenizer().save(folder / "tokenizer", pad, model.config.text.max_length)
    for name, text in {**model.licences, **model.cards}.items():
        (folder / name).write_text(text, encoding="utf-8", newline="")


def has_tokenizer(model: Bundle) -> bool:
    """Returns whether there is a tokenizer to write: the model's own, or CLIP's where it is the text encoder's."""
    text = model.config.text
    return model.own_tokenizer is not None or (text.kind == "clip" and text.vocab_size >= CLIP_TOKENS)


def write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file, and the folder that it is in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8", newline="\n")
