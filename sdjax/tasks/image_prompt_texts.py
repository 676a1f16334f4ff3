"""Reads image prompts from texts, as the command line has them: ADAPTER,image=FILE,weight=0.7."""

import functools
import os
from typing import Any

import numpy as np

from sdjax.checks.arguments import shown
from sdjax.config import ModelConfig
from sdjax.tasks.flag_texts import split_options, unquoted
from sdjax.tasks.image_prompts import SHARES, EncodedPrompt, ImagePrompt, ImagePromptLike

KEYS = ("image", "weight", "start", "end", "blocks", "mask", "negative", "embedding", "encoder")
FILES = ("adapter", "image", "mask", "negative", "embedding", "encoder")  # keys whose values are files
MOST_BYTES = 2**24  # of an embedding's file


def read_image_prompt(given: ImagePromptLike, config: ModelConfig) -> EncodedPrompt:
    """Returns an image prompt, encoded for models of this description. `given` is an ImagePrompt or a text (`parse`).

    One that is encoded already, in the first of two passes, is returned as it is.
    Raises ValueError, and `sdjax.convert.CheckpointError` for a file that cannot be used.
    """
    if isinstance(given, EncodedPrompt):
        return given
    if isinstance(given, str):
        files = [value for _, value in pairs(given)]
        given = _parsed(given, tuple(_stamp(file) for file in files))
    if not isinstance(given, ImagePrompt):
        raise ValueError(f"an image prompt is an sdjax.ImagePrompt, or a text for one; got {shown(given)}")
    return given.encode(config)


def parse(text: str) -> ImagePrompt:
    """Returns the image prompt of a text: ADAPTER,image=FILE, and further KEY=VALUE with commas between.

    Keys are those of `ImagePrompt`; `image` and `negative` may be repeated; `embedding` is a file of NumPy (.npy);
    `blocks` are weights with / between. Raises ValueError for unknown keys and bad values.
    """
    fields: dict[str, Any] = {}
    for key, value in pairs(text):
        if key in ("image", "negative"):
            fields.setdefault(key, []).append(value)
        elif key in fields:
            raise ValueError(f"{key} is given twice in {shown(text)}")
        else:
            fields[key] = _READERS.get(key, str)(value)
    if "," in text and "image" not in fields and "embedding" not in fields:
        raise ValueError(
            f"an image prompt is ADAPTER,image=FILE and further KEY=VALUE with commas between, keys {', '.join(KEYS)}; "
            f"got {shown(text)}"
        )
    return ImagePrompt(**fields)


def pairs(text: str) -> list[tuple[str, str]]:
    """Returns the keys and values of a text. Raises ValueError if they cannot be told apart."""
    adapter, options = split_options("an image prompt", text, KEYS)
    return [("adapter", unquoted(adapter)), *options]


def _numbers(text: str) -> str | list[float]:
    return text if text in SHARES else [_number(one) for one in text.split("/")]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"an image prompt's weights, start and end are numbers; got {shown(text)}") from None


def _embedding(path: str) -> np.ndarray:
    """Returns the array in a file of NumPy. Nothing in it is executed."""
    try:
        if os.path.getsize(path) > MOST_BYTES:
            raise ValueError("it is too large")
        with open(path, "rb") as file:
            return np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
        raise ValueError(f"an embedding is a file of NumPy (.npy); {shown(path)} cannot be read: {reason}") from None


_READERS = {"weight": _number, "start": _number, "end": _number, "blocks": _numbers, "embedding": _embedding}


def _stamp(path: str) -> tuple[int, ...]:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return ()
    return found.st_mtime_ns, found.st_size


@functools.lru_cache(maxsize=8)
def _parsed(text: str, stamps: tuple[tuple[int, ...], ...]) -> ImagePrompt:
    return parse(text)
