"""Cards of AUTOMATIC1111's web UI: PNG pictures that hold an embedding, as a text or in the low bits of their pixels.

In pixels, the data stand in two blocks beside the picture, with a black column between. Each level's low four bits are
the low (left block) and high (right block) half of a byte, mixed with a fixed noise. The bytes are zlib's, of JSON.

Source: the web UI's modules/textual_inversion/image_embedding.py (the format).
"""

import base64
import binascii
import dataclasses
import hashlib
import json
import zlib
from typing import Any

import numpy as np
from jaxtyping import UInt8

from sdjax.config import ModelConfig
from sdjax.convert.adapters.embedding import LARGEST, LoadedEmbedding, load_embedding
from sdjax.convert.containers.webui_hashes import SHORT
from sdjax.convert.errors import CheckpointError
from sdjax.pictures import PictureError, open_picture, png
from sdjax.pictures.metadata.texts import read_texts

TEXT = "sd-ti-embedding"  # the name of the text in a PNG
_LARGEST_JSON = LARGEST // 8  # characters: ten for each number
_MULTIPLIER, _INCREMENT, _MODULUS = 1664525, 1013904223, 2**32  # of the noise


def is_card(data: bytes) -> bool:
    """Returns whether a file holds a card's embedding."""
    try:
        return _content(data) is not None
    except (PictureError, ValueError, zlib.error, RecursionError):
        return True  # a damaged one


def load_card(data: bytes, config: ModelConfig | None, word: str, path: str) -> LoadedEmbedding:
    """Returns the embedding in a card. Raises CheckpointError if there is none, or if it cannot be used."""
    try:
        content = _content(data)
    except (PictureError, ValueError, TypeError, zlib.error, RecursionError) as error:
        raise CheckpointError(f"the embedding in the picture cannot be read ({error})", path) from None
    if content is None:
        raise CheckpointError(f"the picture holds no embedding: neither a text {TEXT} nor data in its pixels", path)
    if not isinstance(content, dict):
        raise CheckpointError("the embedding in the picture is not a JSON object", path)
    try:
        loaded = load_embedding(content, config, word=word)
    except CheckpointError as error:
        raise CheckpointError(str(error), path) from None
    return dataclasses.replace(loaded, short_hash=hashlib.sha256(data).hexdigest()[:SHORT])


def _content(data: bytes) -> Any:
    """Returns the JSON of a card with arrays for tensors, None if the picture holds none."""
    if not data.startswith(png.MAGIC):
        return None
    text = read_texts(data).get(TEXT)
    if text is not None:
        try:
            return json.loads(base64.b64decode(text, validate=True), object_hook=_array)
        except binascii.Error as error:
            raise ValueError(str(error)) from None
    found = _in_pixels(open_picture(data).pixels)
    return None if found is None else json.loads(found, object_hook=_array)


def _array(value: dict[str, Any]) -> Any:
    """Returns a tensor of the card's JSON as an array, everything else as it is."""
    if set(value) != {"TORCHTENSOR"}:
        return value
    return np.asarray(value["TORCHTENSOR"], np.float32)


def _in_pixels(pixels: UInt8[np.ndarray, "h w 3"]) -> bytes | None:
    """Returns the text in the low bits of a picture, None if its blocks are not there. Raises ValueError if damaged."""
    inked = np.all(pixels > 0, axis=2)
    if not np.any(inked):
        return None
    (top, bottom), (left, right) = ((found[0], found[-1] + 1) for axis in (1, 0)
                                    if len(found := np.flatnonzero(np.any(inked, axis=axis))))  # fmt: skip
    low = pixels[top:bottom, left:right] & 0x0F
    gaps = np.flatnonzero(~np.any(low, axis=(0, 2)))
    if len(gaps) < 2:
        return None
    blocks = low[:, : gaps[0]], low[:, gaps[-1] + 1 :]
    if blocks[0].shape != blocks[1].shape or not blocks[0].size:
        return None
    noise = _noise(blocks[0].size).reshape(blocks[0].shape)
    lower, upper = (block ^ noise for block in blocks)
    packed = (upper << 4 | lower).tobytes()
    if packed[0] & 0x0F != 8:  # every zlib stream begins so: other pictures have black columns too
        return None
    unpacker = zlib.decompressobj()
    text = unpacker.decompress(packed, _LARGEST_JSON)
    if not unpacker.eof:
        raise ValueError("its data are cut off, or too large for an embedding")
    return text


def _noise(count: int) -> UInt8[np.ndarray, "n"]:
    """Returns the noise that data are mixed with: a linear congruential generator, modulo 255, four bits each."""
    state = np.array([_INCREMENT], np.uint64)
    multiplier, increment = _MULTIPLIER, _INCREMENT  # of as many steps as there are numbers
    while len(state) < count:
        later = (state * np.uint64(multiplier) + np.uint64(increment)) % np.uint64(_MODULUS)
        state = np.concatenate([state, later])
        increment = (multiplier * increment + increment) % _MODULUS
        multiplier = multiplier * multiplier % _MODULUS
    return (state[:count] % np.uint64(255)).astype(np.uint8) & 0x0F
