"""CLIP's tokenizer, and BERT's for the model of LAION-400M, which needs a vocabulary file.

CLIP's tokenizer is a byte pair encoding that works offline. It equals OpenAI's and open_clip's.

The text is repaired (ftfy), HTML entities are resolved twice, runs of white space become one space, and letters become
lower case. Then a pattern splits it into words, and the UTF-8 bytes of each word are merged by rank. Source:
openai/CLIP, clip/simple_tokenizer.py.

Hugging Face's tokenizers of the same vocabulary differ in two points, where we follow OpenAI for v1 and v2: they
resolve HTML entities at most once, and they treat `<|endoftext|>` and v2's padding `!` as special anywhere in a text,
so their "wow!" ends in padding. v1 and v2 differ only in the padding token: 49407 and 0.
"""

import contextlib
import dataclasses
import functools
import gzip
import html
import importlib.resources
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import Int
from tokenizers import decoders, models, pre_tokenizers

from sdjax.errors import doing
from sdjax.storage.addresses import local
from sdjax.storage.files import new_file

CLIP_TOKENS = 49408  # of CLIP's own vocabulary
BOS, EOS = "<|startoftext|>", "<|endoftext|>"
MAX_FOLDER_BYTES = 64 * 2**20  # the largest tokenizers of text towers are some 20 MB

_ASSET = "bpe_simple_vocab_16e6.txt.gz"
_NUM_MERGES = 48894  # 49408 tokens less 256 bytes, the same ending a word, and the two special ones
# U+0345, a mark whose capital is a letter, falls between the reference's classes, which ignore case: it is dropped
_PATTERN = (
    r"(?i:<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d)"
    "|\\p{L}+|\\p{N}|[^\\s\\p{L}\\p{N}\u0345]+"
)
CLS, SEP = "[CLS]", "[SEP]"  # what starts and ends BERT's sequences
_BERT_CLASSES = ("BertTokenizer", "BertTokenizerFast")
CONFIG = "tokenizer_config.json"
_CLASSES = ("CLIPTokenizer", "CLIPTokenizerFast")  # what a tokenizer_config.json calls a tokenizer of this kind


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A tokenizer, by default CLIP's. `files` are the tokenizer files of a model that has its own (see `load`)."""

    files: tuple[tuple[str, bytes], ...] = dataclasses.field(default=(), repr=False)

    @classmethod
    def load(cls, folder: str | Path) -> "Tokenizer":
        """Returns the tokenizer of a diffusers or transformers folder (the one that holds tokenizer_config.json).

        Byte pair encodings of CLIP's kind are read here, with any vocabulary. transformers reads others, and those with
        added tokens. Raises ValueError if the folder holds no readable tokenizer.
        """
        folder = Path(local(folder))
        if not folder.is_dir():
            raise ValueError(f"a tokenizer must be a folder; {folder} is not one")
        paths = sorted(path for path in folder.iterdir() if path.is_file())
        size = sum(path.stat().st_size for path in paths)
        if size > MAX_FOLDER_BYTES:
            raise ValueError(f"{folder} holds {size} bytes, more than any tokenizer; is it the right folder?")
        tokenizer = cls(tuple((path.name, path.read_bytes()) for path in paths))
        try:
            if not paths:
                raise ValueError("it is empty")
            tokenizer.encode("")
        except Exception as error:  # transformers raises many kinds of errors for files that it cannot use
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(f"{folder} has no readable tokenizer ({reason})") from error
        return tokenizer

    @classmethod
    def from_vocabulary(cls, path: str | os.PathLike[str]) -> "Tokenizer":
        """Returns BERT's tokenizer with the WordPiece vocabulary of a file, one token a line (bert-base-uncased's).

        Raises ValueError if there is no such file, or it holds no such vocabulary.
        """
        path = Path(local(path))
        try:
            if not path.is_file():
                raise ValueError(f"{path} is no file; a WordPiece vocabulary is one, vocab.txt of bert-base-uncased")
            if path.stat().st_size > MAX_FOLDER_BYTES:
                raise ValueError(f"{path} has {path.stat().st_size} bytes, more than any vocabulary")
            data = path.read_bytes()
        except OSError as error:
            raise ValueError(f"the vocabulary {path} cannot be read ({error.strerror or error})") from error
        config = {"do_lower_case": True, "model_max_length": 77, "tokenizer_class": _BERT_CLASSES[0]}
        tokenizer = cls(((CONFIG, (json.dumps(config, indent=2) + "\n").encode()), ("vocab.txt", data)))
        try:
            tokenizer.encode("")
        except ValueError as error:
            raise ValueError(f"{path} holds no WordPiece vocabulary ({error})") from error
        return tokenizer

    @property
    def vocab_size(self) -> int:
        """The number of tokens (CLIP: 49408)."""
        return _engine(self.files).size

    @property
    def largest_id(self) -> int:
        """The largest token number: vocab_size - 1, unless some numbers are unused."""
        return _engine(self.files).largest_id

    @property
    def is_clips(self) -> bool:
        """Whether it is CLIP's tokenizer, from any files."""
        return _engine(self.files) is _engine(())

    def save(self, folder: str | Path, pad_token: str = EOS, length: int = 77) -> None:
        """Writes the tokenizer's files: the loaded ones, or CLIP's with `pad_token`.

        `length` is the length of a sequence. transformers needs it, so it is added if the files lack it.
        """
        folder = local(folder)
        if not self.files:
            return write_clip_files(folder, pad_token, length)
        files = dict(self.files)
        config = _json_object(files, CONFIG)
        if "model_max_length" not in config:
            files[CONFIG] = (json.dumps({**config, "model_max_length": length}, indent=2) + "\n").encode()
        _write(folder, files)

    @property
    def bos_token_id(self) -> int:
        """The token that starts every sequence (CLIP: 49406)."""
        return _engine(self.files).bos

    @property
    def eos_token_id(self) -> int:
        """The token that ends every sequence (CLIP: 49407)."""
        return _engine(self.files).eos

    def encode(self, text: str) -> list[int]:
        """Returns all tokens of the text, without start, end and padding."""
        return _engine(self.files).encode(_checked(text))

    def units(self, text: str) -> list[list[int]]:
        """Returns the tokens of the text in groups that chunks never cut: here each token alone."""
        return [[token] for token in self.encode(text)]

    def runs(self, text: str) -> list[list[int]]:
        """Returns the tokens of the text, cut around words with tokens of their own: here all in one."""
        return [self.encode(text)]

    def words(self, ids: Sequence[int]) -> list[str]:
        """Returns the text of each token. A token that ends a word ends with a space."""
        return [_engine(self.files).word(one) for one in ids]

    def __call__(
        self, texts: str | Sequence[str], *, length: int = 77, pad_token_id: int | None = None
    ) -> Int[np.ndarray, "b n"]:
        """Returns int32 [b, length]: start, tokens, end, padding. The default padding is the end token.

        Tokens that do not fit are left out, so that a row always has its end token. `cut` returns the part left out.
        """
        if length < 2:
            raise ValueError(f"length is for start and end tokens too: it must be at least 2, got {length}")
        texts = [texts] if isinstance(texts, str) else list(texts)
        pad = self.eos_token_id if pad_token_id is None else pad_token_id
        ids = np.full((len(texts), length), pad, np.int32)
        for row, text in zip(ids, texts):
            tokens = [self.bos_token_id, *self.encode(text)[: length - 2], self.eos_token_id]
            row[: len(tokens)] = tokens
        return ids

    def cut(self, text: str, *, length: int = 77) -> str:
        """Returns the end of the (cleaned) text that does not fit into `length` tokens; empty if all fits."""
        return _engine(self.files).after(_checked(text), length - 2)


def write_clip_files(folder: str | Path, pad_token: str = EOS, length: int = 77) -> None:
    """Writes CLIP's vocabulary as the files of a diffusers folder's `tokenizer/`.

    `pad_token` is "<|endoftext|>" for v1 and "!" for v2. Raises ValueError if it is not in the vocabulary.
    """
    vocab, merges = _clip_vocabulary()
    if pad_token not in vocab:
        raise ValueError(f"the padding token {pad_token!r} is not in CLIP's vocabulary; v1 has {EOS!r}, v2 '!'")
    _write(folder, clip_files(vocab, merges, pad_token, model_max_length=length))


def _write(folder: str | Path, contents: Mapping[str, bytes]) -> None:
    with contextlib.ExitStack() as stack:  # all files are written before one gets its final name
        for name, data in contents.items():
            new = new_file(Path(folder) / name, overwrite=True, what="writing the tokenizer", needs=len(data))
            stack.enter_context(new).write_bytes(data)


def clip_files(
    vocab: dict[str, int], merges: Sequence[tuple[str, str]], pad_token: str = EOS, **more: Any
) -> dict[str, bytes]:
    """Returns the files of a CLIP-like tokenizer, by their names. `more` goes into tokenizer_config.json."""
    special = {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS, "pad_token": pad_token}
    config = {"add_prefix_space": False, "do_lower_case": True, "errors": "replace", **special,
              "tokenizer_class": "CLIPTokenizer", **more}  # fmt: skip
    files = {
        "merges.txt": "\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges), ""]),
        "special_tokens_map.json": json.dumps(special, indent=2) + "\n",
        CONFIG: json.dumps(config, indent=2) + "\n",
        "vocab.json": json.dumps(vocab, ensure_ascii=False),
    }
    return {name: text.encode() for name, text in files.items()}


def _checked(text: str) -> str:
    if not isinstance(text, str):
        raise ValueError(f"a text is a string; got {type(text).__name__}: {text!r}")
    return text


def clean(text: str) -> str:
    """Returns the text as it is tokenized: repaired, entities resolved, white space collapsed, lower case."""
    if "&" in text or not (text.isascii() and text.isprintable()):  # else there is nothing to repair or to resolve
        import ftfy  # here, because most prompts do not need it

        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


_BYTES = decoders.ByteLevel()


class _BytePairs:
    """CLIP's byte pair encoding with any vocabulary that has its two special tokens."""

    def __init__(self, vocab: Mapping[str, int], merges: Sequence[tuple[str, str]]):
        self.bos, self.eos, self.size, self.largest_id = vocab[BOS], vocab[EOS], len(vocab), max(vocab.values())
        self.words = pre_tokenizers.Split(tokenizers.Regex(_PATTERN), "removed", invert=True)
        self.model = tokenizers.Tokenizer(
            models.BPE(vocab=dict(vocab), merges=list(merges), end_of_word_suffix="</w>", unk_token=EOS)
        )
        to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        self.model.pre_tokenizer = pre_tokenizers.Sequence([self.words, to_bytes])

    def encode(self, text: str) -> list[int]:
        return [token for token, _ in self._tokens(clean(text))]

    def after(self, text: str, count: int) -> str:
        text = clean(text)
        rest = self._tokens(text)[count:]
        return text[rest[0][1] :] if rest else ""

    def word(self, token: int) -> str:
        name = self.model.id_to_token(token) or ""
        return str(_BYTES.decode([name.removesuffix("</w>")])) + (" " if name.endswith("</w>") else "")

    def _tokens(self, text: str) -> list[tuple[int, int]]:
        """Returns each token with the place in the text where it starts."""
        out, begin = [], 0
        for word, (start, end) in self._special_words(text):
            out += self._merged(text, begin, start)
            out.append((self.bos if word == BOS else self.eos, start))
            begin = end
        return out + self._merged(text, begin, len(text))

    def _special_words(self, text: str) -> list[tuple[str, tuple[int, int]]]:
        # By the words' pattern and not by searching: in "!<|endoftext|>" the punctuation is one run, and no special
        # token stands there
        if BOS not in text and EOS not in text:
            return []
        return [item for item in self.words.pre_tokenize_str(text) if item[0] in (BOS, EOS)]

    def _merged(self, text: str, begin: int, end: int) -> list[tuple[int, int]]:
        encoding = self.model.encode(text[begin:end])
        return [(token, begin + start) for token, (start, _) in zip(encoding.ids, encoding.offsets)]


class _WordPieces:
    """BERT's tokenizer: words of lower case without accents, cut into the longest pieces in the vocabulary."""

    def __init__(self, data: bytes, *, lowercase: bool):
        try:
            lines = data.decode("utf-8").split("\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"it is not UTF-8 text: {error}") from error
        tokens = [line.rstrip("\r") for line in lines]
        tokens = tokens[:-1] if tokens[-1] == "" else tokens
        vocab = {token: i for i, token in enumerate(tokens)}
        missing = [token for token in (CLS, SEP, "[PAD]", "[UNK]", "[MASK]") if token not in vocab]
        if missing or len(vocab) != len(tokens):
            fault = f"it lacks {', '.join(missing)}" if missing else "some of its tokens occur twice"
            raise ValueError(f"{fault}; it should have one token a line, as vocab.txt of bert-base-uncased")
        self.bos, self.eos, self.size, self.largest_id = vocab[CLS], vocab[SEP], len(vocab), len(vocab) - 1
        self.tokenizer = tokenizers.BertWordPieceTokenizer(vocab, lowercase=lowercase)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def word(self, token: int) -> str:
        return str(self.tokenizer.id_to_token(token) or "") + " "

    def after(self, text: str, count: int) -> str:
        offsets = self.tokenizer.encode(text, add_special_tokens=False).offsets
        return text[offsets[count][0] :] if len(offsets) > count else ""


class _Transformers:
    """A tokenizer of another kind, run by transformers."""

    def __init__(self, files: tuple[tuple[str, bytes], ...]):
        import transformers  # takes seconds: only for a folder that needs it

        needs = sum(len(data) for _, data in files)
        with doing("copying the tokenizer to", tempfile.gettempdir(), needs), contextlib.ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
            for name, data in files:
                (Path(folder) / name).write_bytes(data)
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        first_known = lambda *ids: next((i for i in ids if i is not None), None)  # noqa: E731
        self.bos: Any = first_known(self.tokenizer.bos_token_id, self.tokenizer.cls_token_id)
        self.eos: Any = first_known(self.tokenizer.eos_token_id, self.tokenizer.sep_token_id)
        if self.bos is None or self.eos is None:
            raise ValueError("it has no start token or no end token")
        self.size, self.largest_id = len(self.tokenizer), max(self.tokenizer.get_vocab().values())

    def encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]

    def word(self, token: int) -> str:
        return str(self.tokenizer.decode([token]))

    def after(self, text: str, count: int) -> str:
        return str(self.tokenizer.decode(self.encode(text)[count:]))


@functools.lru_cache(maxsize=4)
def _engine(files: tuple[tuple[str, bytes], ...]) -> _BytePairs | _WordPieces | _Transformers:
    if not files:
        return _BytePairs(*_clip_vocabulary())
    by_name = dict(files)
    config = _json_object(by_name, CONFIG)
    if (
        "vocab.txt" in by_name
        and "added_tokens.json" not in by_name
        and config.get("tokenizer_class", _BERT_CLASSES[0]) in _BERT_CLASSES
    ):
        return _WordPieces(by_name["vocab.txt"], lowercase=bool(config.get("do_lower_case", True)))
    vocabulary = _folder_vocabulary(dict(files))
    if vocabulary is None:
        return _Transformers(files)
    return _engine(()) if vocabulary == _clip_vocabulary() else _BytePairs(*vocabulary)


@functools.cache
def _clip_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    packed = importlib.resources.files("sdjax").joinpath("assets", _ASSET).read_bytes()
    lines = gzip.decompress(packed).decode().split("\n")[1 : _NUM_MERGES + 1]
    merges: list[Any] = [tuple(line.split(" ")) for line in lines]
    # ByteLevel's alphabet stands for the 256 bytes; by code point, printable bytes come first, as in the reference
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*alphabet, *(letter + "</w>" for letter in alphabet), *(line.replace(" ", "") for line in lines), BOS, EOS]
    return {name: i for i, name in enumerate(names)}, merges


def _folder_vocabulary(files: dict[str, bytes]) -> tuple[dict[str, int], list[tuple[str, str]]] | None:
    """Returns vocabulary and merges if the files are a plain tokenizer of CLIP's kind, else None."""
    config = _json_object(files, CONFIG)
    whole = _json_object(files, "tokenizer.json")
    if config.get("tokenizer_class", "CLIPTokenizer") not in _CLASSES:
        return None
    if "vocab.json" in files and "merges.txt" in files:
        vocab = _json_object(files, "vocab.json")
        lines = files["merges.txt"].decode().split("\n")
        merges: list[Any] = [tuple(line.split()) for line in lines if line.strip() and not line.startswith("#version")]
    else:
        model = whole.get("model", {})
        if model.get("type") != "BPE" or model.get("end_of_word_suffix") != "</w>":
            return None
        vocab = model["vocab"]
        merges = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
    added = {token["content"]: token["id"] for token in whole.get("added_tokens", [])}
    added |= {token["content"]: int(i) for i, token in config.get("added_tokens_decoder", {}).items()}
    added |= _json_object(files, "added_tokens.json")
    if any(vocab.get(name) != i for name, i in added.items()):
        return None
    if BOS not in vocab or EOS not in vocab:
        return None
    return vocab, merges


def _json_object(files: dict[str, bytes], name: str) -> dict[str, Any]:
    value = json.loads(files.get(name, b"{}"))
    if not isinstance(value, dict):
        raise ValueError(f"{name} is a JSON object, got {type(value).__name__}")
    return value
