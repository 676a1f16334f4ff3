"""CLIP's tokenizer against OpenAI's: golden/tokens.json.gz holds texts and what openai/CLIP's simple_tokenizer made."""

import gzip
import hashlib
import html
import json
import pickle
import random
from pathlib import Path

import ftfy
import numpy as np
import pytest

import sdjax
from sdjax.prompts import tokenizer as module
from sdjax.prompts.tokenizer import BOS, EOS, Tokenizer, clean, write_clip_files

GOLDEN = json.loads(gzip.decompress((Path(__file__).parent / "golden/tokens.json.gz").read_bytes()))
ASSETS = Path(sdjax.__file__).parent / "assets"


@pytest.fixture(scope="module")
def clip() -> Tokenizer:
    return Tokenizer()


def test_tokens_equal_openai(clip: Tokenizer) -> None:
    wrong = [case["text"] for case in GOLDEN if clip.encode(case["text"]) != case["ids"]]
    assert not wrong
    assert len(GOLDEN) > 300


def test_special_token_counts_only_where_a_word_begins(clip: Tokenizer) -> None:
    assert clip.encode("hello<|endoftext|>world") == [3306, 49407, 1002]  # the parity kit's
    assert 49407 not in clip.encode("hello!<|endoftext|>")  # "!<|" is one run of punctuation


def test_vocabulary_is_the_published_file() -> None:
    name = "bpe_simple_vocab_16e6"
    digest = hashlib.sha256((ASSETS / f"{name}.txt.gz").read_bytes()).hexdigest()
    licence = (ASSETS / f"{name}.LICENSE").read_text()
    assert digest in licence
    assert "MIT License" in licence
    assert "openai/CLIP" in licence


@pytest.mark.parametrize(("pad", "name"), [(49407, "v1"), (0, "v2")])
def test_rows_are_start_tokens_end_padding(clip: Tokenizer, pad: int, name: str) -> None:
    ids = clip(["a cat", ""], length=77, pad_token_id=pad)
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(ids[0], [49406, 320, 2368, 49407, *[pad] * 73])  # "a</w>" 320, "cat</w>" 2368
    np.testing.assert_array_equal(ids[1], [49406, 49407, *[pad] * 75])


def test_one_text_is_a_batch_of_one(clip: Tokenizer) -> None:
    np.testing.assert_array_equal(clip("a cat"), clip(["a cat"], pad_token_id=49407))
    assert clip([]).shape == (0, 77)


def test_long_text_is_cut_before_its_end_token(clip: Tokenizer) -> None:
    text = " ".join(["cat"] * 74 + ["dog", "Bird", "&amp;", "fish"])
    ids = clip(text, length=77)[0]
    assert ids[-1] == 49407
    np.testing.assert_array_equal(ids[1:76], clip.encode(text)[:75])
    assert clip.cut(text) == "bird & fish"
    assert clip.cut(" ".join(["cat"] * 75)) == ""
    assert clip.cut(" ".join(["cat"] * 75) + " <|endoftext|> x") == "<|endoftext|> x"


@pytest.mark.parametrize("case", [c for c in GOLDEN if len(c["ids"]) > 4][::10], ids=lambda c: str(len(c["ids"])))
def test_cut_and_kept_parts_make_the_cleaned_text(clip: Tokenizer, case: dict) -> None:
    text = clean(case["text"])
    rest = clip.cut(case["text"], length=5)
    assert rest
    assert text.endswith(rest)


@pytest.mark.parametrize("wrong", [b"a cat", None, 3])
def test_what_is_not_a_string_is_refused(clip: Tokenizer, wrong: object) -> None:
    with pytest.raises(ValueError, match="a text is a string"):
        clip.encode(wrong)


def test_length_below_two_is_refused(clip: Tokenizer) -> None:
    with pytest.raises(ValueError, match="at least 2, got 1"):
        clip("a", length=1)


def test_tokenizer_is_a_value(clip: Tokenizer) -> None:
    assert pickle.loads(pickle.dumps(clip)) == Tokenizer()
    assert hash(clip) == hash(Tokenizer())


def test_all_tokenizers_share_what_is_built_once() -> None:
    module._engine.cache_clear()
    module._clip_vocabulary.cache_clear()
    for _ in range(2):
        Tokenizer().encode("a")
    assert module._engine.cache_info().misses == module._clip_vocabulary.cache_info().misses == 1


@pytest.mark.parametrize("pad", [EOS, "!"])
def test_written_files_hold_the_vocabulary(tmp_path: Path, clip: Tokenizer, pad: str) -> None:
    clip.save(tmp_path, pad)
    vocab = json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8"))
    # Ids of the published vocab.json: first and last byte, first merge, special tokens
    assert [vocab[t] for t in ("!", "!</w>", "in", BOS, EOS)] == [0, 256, 512, 49406, 49407]
    assert len(vocab) == 49408
    assert (tmp_path / "merges.txt").read_text(encoding="utf-8").count("\n") == 48895
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        assert json.loads((tmp_path / name).read_text())["pad_token"] == pad


def test_plain_folder_uses_the_vocabulary_that_is_here(tmp_path: Path, clip: Tokenizer) -> None:
    write_clip_files(tmp_path / "a")
    loaded = Tokenizer.load(tmp_path / "a")
    assert module._engine(loaded.files) is module._engine(())
    loaded.save(tmp_path / "b")
    for path in (tmp_path / "a").iterdir():
        assert (tmp_path / "b" / path.name).read_bytes() == path.read_bytes()
    assert loaded.encode("wow! &amp; <b>") == clip.encode("wow! &amp; <b>")


def test_folder_with_padding_among_added_tokens_is_plain(tmp_path: Path, clip: Tokenizer) -> None:
    # Stability's folders list "!", their padding, as a special token; OpenCLIP's tokenizer, which they stand for, has
    # it as ordinary punctuation: 256 at a word's end
    write_clip_files(tmp_path, "!")
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["added_tokens_decoder"] = {"0": {"content": "!"}, "49407": {"content": EOS}}
    path.write_text(json.dumps(config))
    assert Tokenizer.load(tmp_path).encode("wow !") == clip.encode("wow !")
    assert clip.encode("wow !")[-1] == 256


def small_vocabulary() -> tuple[dict[str, int], list[str]]:
    letters = "abcdefghijklmnopqrstuvwxyz"
    names = [*letters, *(letter + "</w>" for letter in letters), "ca", "cat</w>", BOS, EOS]
    return {name: i for i, name in enumerate(names)}, ["c a", "ca t</w>"]


@pytest.mark.parametrize("layout", ["files", "tokenizer.json"])
def test_folder_with_a_vocabulary_of_its_own(tmp_path: Path, layout: str) -> None:
    vocab, merges = small_vocabulary()
    if layout == "files":
        (tmp_path / "vocab.json").write_text(json.dumps(vocab))
        (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    else:
        model = {"type": "BPE", "vocab": vocab, "merges": merges, "end_of_word_suffix": "</w>"}
        (tmp_path / "tokenizer.json").write_text(json.dumps({"model": model, "added_tokens": []}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    own = Tokenizer.load(tmp_path)
    assert own.encode("Cat cab") == [vocab["cat</w>"], vocab["ca"], vocab["b</w>"]]
    np.testing.assert_array_equal(own("cat", length=4), [[vocab[BOS], vocab["cat</w>"], vocab[EOS], vocab[EOS]]])


def test_saved_files_say_how_long_a_sequence_is(tmp_path: Path) -> None:
    vocab, merges = small_vocabulary()
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    for given, wanted in (({}, 32), ({"model_max_length": 40}, 40)):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer", **given}))
        Tokenizer.load(tmp_path).save(tmp_path / "saved", length=32)
        config = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
        assert config == {"tokenizer_class": "CLIPTokenizer", "model_max_length": wanted}
        assert Tokenizer.load(tmp_path / "saved").encode("cat") == [vocab["cat</w>"]]


@pytest.mark.parametrize("content", [None, b"{", b"[]", b'{"tokenizer_class": "NoSuchTokenizer"}'])
def test_folder_without_a_tokenizer_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer_config.json").write_bytes(content)
    with pytest.raises(ValueError, match="has no readable tokenizer"):
        Tokenizer.load(tmp_path)
    with pytest.raises(ValueError, match="is not one"):
        Tokenizer.load(tmp_path / "absent")


def test_tokens_added_to_the_vocabulary_go_through_transformers(tmp_path: Path, clip: Tokenizer) -> None:
    pytest.importorskip("transformers")
    write_clip_files(tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<my-cat>": 49408}))
    own = Tokenizer.load(tmp_path)
    assert own.encode("a <my-cat> on a mat") == [320, 49408, *clip.encode("on a mat")]
    assert (own.bos_token_id, own.eos_token_id) == (49406, 49407)
    assert own.cut("a cat on a mat", length=4) == "on a mat"


@pytest.mark.torch
@pytest.mark.parametrize("pad", [EOS, "!"])
def test_transformers_reads_the_files_alike(tmp_path: Path, clip: Tokenizer, pad: str) -> None:
    transformers = pytest.importorskip("transformers")
    write_clip_files(tmp_path, pad)
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path, local_files_only=True)
    # Where ftfy has nothing to repair, no entity is resolved, and neither padding nor a special token occurs
    texts = [case["text"] for case in GOLDEN if case["text"].isascii() and not set("&!<\0\x1b") & set(case["text"])]
    assert len(texts) > 10
    pad_id = 0 if pad == "!" else 49407
    assert theirs.pad_token_id == pad_id
    ids = theirs(texts, padding="max_length", max_length=77, truncation=True)["input_ids"]
    np.testing.assert_array_equal(clip(texts, pad_token_id=pad_id), ids)


def test_printable_ascii_without_entities_needs_no_repair():
    letters = [chr(i) for i in range(32, 127) if chr(i) != "&"]
    rng = random.Random(0)
    for length in (*range(40), 2000):
        text = "".join(rng.choices(letters, k=length))
        assert ftfy.fix_text(text) == html.unescape(text) == text
