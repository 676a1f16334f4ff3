"""Tokenizer, licence and model card in the metadata of a single file. Other tools ignore them.

They are read as data, with limits. A tokenizer's files must have known names, and its class must be known.
"""

import base64
import json
import re
import zlib
from collections.abc import Callable, Mapping
from typing import Any

from sdjax.convert.containers.strict_json import read_json
from sdjax.convert.errors import CheckpointError, shown
from sdjax.prompts.tokenizer import CONFIG, Tokenizer

CONFIG_KEY = "sdjax.config"  # the configuration of a model that is not one of the releases
LICENCE_KEY = "sdjax.licence"  # {file name: text}
CARD_KEY = "sdjax.card"  # {file name: text}
TOKENIZER_KEY = "sdjax.tokenizer"  # {file name: text}, as JSON, zlib and base64 make it text
KEYS = (CONFIG_KEY, LICENCE_KEY, CARD_KEY, TOKENIZER_KEY)
LICENCE = re.compile(r"(?i)(licen[cs]e|copying|notice)([-._ ][-\w. ]{0,60})?")
CARD = re.compile(r"(?i)(readme|model[-_ ]?card)(\.(md|markdown|txt|rst))?")
MAX_TEXTS = 10
MAX_DESCRIPTION = 2**18
MAX_PACKED = 2 * 2**20  # characters; CLIP's own vocabulary, with tokens added, takes 0.7 MB
MAX_TOKENIZER = 8 * 2**20  # bytes, unpacked
MAX_ITEMS = 400_000  # of the JSON in it, which take some 100 bytes each when they are read; CLIP's has 200,000
_FILES = (
    "added_tokens.json", "merges.txt", "special_tokens_map.json", "tokenizer.json", CONFIG, "vocab.json", "vocab.txt",
)  # fmt: skip
_CLASSES = ("CLIPTokenizer", "CLIPTokenizerFast", "BertTokenizer", "BertTokenizerFast")
_TO_A_FOLDER = "write the model as a folder instead"


def packed_tokenizer(tokenizer: Tokenizer) -> str:
    """Returns a tokenizer as text for a file's metadata. Raises CheckpointError if it is too large or of another kind.

    `unpacked_tokenizer` gives it back.
    """
    try:
        files = {name: data.decode("utf-8") for name, data in tokenizer.files if name in _FILES}
        _check_class(files)
    except ValueError as error:
        reason = f"a single file has no place for the model's tokenizer ({error}): {_TO_A_FOLDER}"
        raise CheckpointError(reason) from None
    data = json.dumps(files, ensure_ascii=False, sort_keys=True).encode()
    text = base64.b64encode(zlib.compress(data, 6)).decode()
    if len(data) > MAX_TOKENIZER or len(text) > MAX_PACKED or _items(data) > MAX_ITEMS:
        raise CheckpointError(
            f"a single file has no place for the model's tokenizer, whose files take {len(data)} bytes: {_TO_A_FOLDER}"
        )
    return text


def unpacked_tokenizer(text: str, error: Callable[[str], CheckpointError]) -> Tokenizer:
    """Returns the tokenizer in a file's metadata. `error` makes the exception for what is none."""

    def refused(reason: str) -> CheckpointError:
        return error(f"the tokenizer in its metadata ({TOKENIZER_KEY}) cannot be used: {reason}")

    if len(text) > MAX_PACKED:
        raise refused(f"it has {len(text)} characters, more than {MAX_PACKED}")
    try:
        unpacking = zlib.decompressobj()
        data = unpacking.decompress(base64.b64decode(text, validate=True), MAX_TOKENIZER)
    except (ValueError, zlib.error) as problem:
        raise refused("it is damaged") from problem
    if not unpacking.eof or _items(data) > MAX_ITEMS:
        raise refused(f"it is damaged, or takes more than {MAX_TOKENIZER} bytes or {MAX_ITEMS} items")
    files = read_json(data, refused)
    for name, content in files.items():
        if name not in _FILES or type(content) is not str:
            raise refused(f"{shown(name)} is none of a tokenizer's files, {', '.join(_FILES)}")
    try:
        _check_class(files)
        tokenizer = Tokenizer(tuple((name, files[name].encode()) for name in sorted(files)))
        tokenizer.encode("")
    except Exception as problem:  # whatever tokenizers and transformers raise for files that they cannot use
        raise refused(shown(str(problem))) from problem
    return tokenizer


def _items(data: bytes) -> int:
    return sum(data.count(mark) for mark in (b",", b"[", b"{"))


def _check_class(files: Mapping[str, str]) -> None:
    """Raises ValueError unless the files are of a tokenizer that transformers builds without code from elsewhere."""
    config: Any = json.loads(files.get(CONFIG, "{}"))
    kind = config.get("tokenizer_class", _CLASSES[0]) if isinstance(config, dict) else None
    if kind not in _CLASSES or "auto_map" in config:
        raise ValueError(f"it is one of {', '.join(_CLASSES)}, got {shown(kind)}")
    if not {"vocab.json", "vocab.txt", "tokenizer.json"} & files.keys():
        raise ValueError("it has no vocabulary")


def described(text: str) -> dict[str, Any]:
    """Returns the description in a file's metadata as plain data. Raises CheckpointError."""
    if len(text) > MAX_DESCRIPTION:
        raise CheckpointError(f"its metadata's {CONFIG_KEY} has {len(text)} characters; a description has 2,000")
    return read_json(text.encode(), lambda reason: CheckpointError(f"its metadata's {CONFIG_KEY}: {reason}"))


def packed_texts(texts: Mapping[str, str]) -> str:
    """Returns texts by file name as text for a file's metadata."""
    return json.dumps(dict(texts), ensure_ascii=False)


def unpacked_texts(metadata: Mapping[str, str], key: str, names: re.Pattern[str]) -> dict[str, str]:
    """Returns the texts under a key of a file's metadata whose file names match; none if they are damaged."""
    try:
        texts = json.loads(metadata.get(key, "{}"))
    except (ValueError, RecursionError):
        return {}
    if not isinstance(texts, dict):
        return {}
    fitting = [name for name, text in texts.items() if isinstance(text, str) and names.fullmatch(name)]
    return {name: texts[name] for name in fitting[:MAX_TEXTS]}
