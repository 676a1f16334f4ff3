"""Embeddings of words in pictures: reading files, finding words, one set for each picture."""

import base64
import dataclasses
import hashlib
import json
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

import sdjax
from sdjax import convert
from sdjax.convert import CheckpointError
from sdjax.convert.containers.lazy import LazyTensor
from sdjax.convert.write.safetensors_writer import write_safetensors
from sdjax.pipeline.contexts import encode_texts, encoder_of, read_text
from sdjax.prompts.added_words import AddedWords
from sdjax.prompts.chunks import Encoder
from sdjax.prompts.clip_skip import layers_used
from sdjax.prompts.language import Language
from sdjax.prompts.tokenizer import CLIP_TOKENS, Tokenizer
from sdjax.scripts.main import main
from sdjax.tasks.embeddings import embeddings_in, read_embedding

import models
from checks import count_compilations

FEW = {"num_steps": 2, "height": 64, "width": 64, "sampler": "euler"}
WIDTH = models.TINY.text.width


def vectors(seed, n=2, width=WIDTH):
    return np.random.default_rng(seed).normal(size=(n, width)).astype("f") * 3


def save(path, tensors):
    several = {name: LazyTensor(a.shape, a.dtype, lambda a=a: a, name=name) for name, a in tensors.items()}
    write_safetensors(path, several, {"format": "pt"}, aligned=False)
    return path


def card(path, values):
    content = {"string_to_token": {"*": 265}, "string_to_param": {"*": {"TORCHTENSOR": values}}, "name": "x"}
    text = PngImagePlugin.PngInfo()
    text.add_text("sd-ti-embedding", base64.b64encode(json.dumps(content).encode()).decode())
    Image.new("RGB", (8, 8)).save(path, pnginfo=text)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("embeddings")
    save(place / "style.safetensors", {"emb_params": vectors(1)})
    save(place / "style-v2.safetensors", {"<other>": vectors(2, 1)[0]})
    (place / "below").mkdir()
    card(place / "below" / "card.png", vectors(3, 3).tolist())
    return place


def made(pipe, *prompts, **options):
    return np.stack(list(sdjax.text_to_image(pipe, list(prompts), seed=[5] * len(prompts), **{**FEW, **options})))


@pytest.mark.parametrize(
    "data",
    [
        {"string_to_token": {"*": 265}, "string_to_param": {"*": vectors(1)}, "name": "other", "step": 9},
        {"emb_params": vectors(1)},
        {"<word>": vectors(1)},
        {"clip_g": vectors(4, 2, 20), "clip_l": vectors(1)},
    ],
)
def test_every_layout_gives_the_vectors(data):
    loaded = convert.load_embedding(data, models.TINY, word="w")
    np.testing.assert_array_equal(loaded.vectors, vectors(1))
    assert loaded.word == "w"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"emb_params": vectors(1, 2, WIDTH + 1)}, f"'w' has vectors of {WIDTH + 1} numbers.* takes {WIDTH}"),
        ({"<a>": vectors(1), "<b>": vectors(2)}, "'<a>', '<b>'"),
        ({"emb_params": vectors(1) * np.nan}, "not finite"),
        ({"emb_params": vectors(1, 76)}, "76 vectors"),
        ({"emb_params": np.zeros((2, WIDTH), int)}, r"\[n, d\]"),
        ({}, "no vectors"),
    ],
)
def test_what_is_no_embedding_of_this_model_is_refused(data, said):
    with pytest.raises(CheckpointError, match=said):
        convert.load_embedding(data, models.TINY, word="w")


def test_cards_are_read_and_damaged_ones_refused(tmp_path):
    assert read_embedding(f"a word={card(tmp_path / 'c.png', vectors(3).tolist())}", models.TINY).word == "a word"
    for values in [[1, 2], [[1]]], {"no": "numbers"}, "text", [[[[[0]]]]]:
        with pytest.raises(CheckpointError, match="c.png"):
            read_embedding(str(card(tmp_path / "c.png", values)), models.TINY)
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    with pytest.raises(CheckpointError, match="neither a text sd-ti-embedding nor data in its pixels"):
        read_embedding(str(tmp_path / "plain.png"), models.TINY)


def pixel_card(path, values):
    """Writes a card with the data in the low bits of its pixels, as the web UI lays them out."""
    content = {"string_to_token": {"*": 265}, "string_to_param": {"*": {"TORCHTENSOR": values}}, "name": "x"}
    data = np.frombuffer(zlib.compress(json.dumps(content).encode(), 9), np.uint8)
    height, state = 32, 0
    data = np.resize(data, (height, -(-len(data) // (3 * height)), 3))
    noise = []
    for _ in range(data.size):
        state = (1664525 * state + 1013904223) % 2**32
        noise.append(state % 255 & 0x0F)
    noise = np.array(noise, np.uint8).reshape(data.shape)
    low, high = ((half ^ noise) | 0x50 for half in (data & 0x0F, data >> 4))
    gap, picture = np.zeros((height, 1, 3), np.uint8), np.full((height, 20, 3), 0x77, np.uint8)
    wide = np.concatenate([low, gap, picture, gap, high], axis=1)
    Image.fromarray(np.pad(wide, ((2, 3), (4, 1), (0, 0)))).save(path)  # black around it
    return path


def test_cards_whose_data_are_in_their_pixels_are_read(tmp_path):
    path = pixel_card(tmp_path / "c.png", vectors(3).tolist())
    loaded = read_embedding(str(path), models.TINY)
    np.testing.assert_array_equal(loaded.vectors, vectors(3))
    assert loaded.short_hash == hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    pixels = np.array(Image.open(path))
    pixels[15:20, 5:9] ^= 3
    Image.fromarray(pixels).save(path)
    with pytest.raises(CheckpointError, match=r"the embedding in the picture cannot be read .*c.png|c.png: the embed"):
        read_embedding(str(path), models.TINY)


def test_pictures_beside_embeddings_are_no_embeddings(folder, tmp_path):
    """Neither a preview of the same name nor a picture whose name is a word of the prompt."""
    save(tmp_path / "style.safetensors", {"emb_params": vectors(1)})
    for name in "style.png", "cat.png":
        Image.new("RGB", (8, 8), (200, 9, 9)).save(tmp_path / name)
    found = embeddings_in(("a style of a cat",), (), str(tmp_path), (), models.TINY, "weights")
    assert [(one.word, len(one.vectors)) for one in found] == [("style", 2)]


def test_a_word_moves_to_the_next_chunk_whole():
    tokenizer = AddedWords.to(Tokenizer(), {"<cat>": 3})
    encoder = Encoder(tokenizer)
    for count, want in (72, (75,)), (73, (73, 3)), (75, (75, 3)):
        chunks = Language().chunks("a " * count + "<cat>,", encoder)
        assert tuple(chunk.used for chunk in chunks)[: len(want)] in (want, (*want[:-1], want[-1] + 1))
        ids = [token for chunk in chunks for token in chunk.ids if token >= CLIP_TOKENS]
        assert ids == [CLIP_TOKENS, CLIP_TOKENS + 1, CLIP_TOKENS + 2]
        at = next(chunk for chunk in chunks if CLIP_TOKENS in chunk.ids)
        assert CLIP_TOKENS + 2 in at.ids
    comfyui = Language("comfyui").chunks("a " * 73 + "<cat>", encoder)
    assert [chunk.used for chunk in comfyui] == [73, 3]


def test_words_are_found_by_syntax_longest_first(folder):
    found = embeddings_in(("a STYLE, style-v2; styled card",), (), str(folder), (), models.TINY, "weights")
    assert {one.word: len(one.vectors) for one in found} == {"style": 2, "style-v2": 1, "card": 3}
    found = embeddings_in(("style (embedding:style-v2.safetensors:1.2)",), (), str(folder), (), models.TINY, "comfyui")
    assert [one.word for one in found] == ["embedding:style-v2.safetensors"]


def test_two_embeddings_of_one_name_are_refused_where_the_name_is_used(folder):
    given = [("style", vectors(8))]
    assert embeddings_in(("a cat",), given, str(folder), (), models.TINY, "weights") == ()
    with pytest.raises(ValueError, match="two embeddings have the name 'style'"):
        embeddings_in(("a style",), given, str(folder), (), models.TINY, "weights")
    with pytest.raises(ValueError, match="the model has such a word"):
        embeddings_in(("a style",), given, None, (), models.TINY, "weights", ["Style"])


def test_a_word_is_its_vectors_in_the_place_of_tokens():
    pipe = models.pipeline()
    table = np.asarray(pipe.params["text"]["text_model"]["embeddings"]["token_embedding"]["embedding"])
    ids = pipe.tokenizer.encode("red cat")
    own = pipe.with_embeddings({"xyz": table[ids]})
    both = [
        read_text(one, text, Language()) for one, text in ((own, "a (xyz:1.2) here"), (pipe, "a (red cat:1.2) here"))
    ]
    got, want = (encode_texts(one, [text], at_a_time=1)[0] for one, text in zip((own, pipe), both))
    np.testing.assert_array_equal(got, want)
    assert encoder_of(own).tokenizer.encode("xyz") != ids
    with pytest.raises(ValueError, match="two embeddings"):
        own.with_embeddings({"XYZ": vectors(1)})


def test_each_picture_has_its_own_words_and_others_compile_nothing(folder):
    pipe = models.pipeline()
    options = {"embedding_dir": str(folder), "negative_prompt": "card"}
    got = made(pipe, "a style", "a cat", "style-v2", **options)
    np.testing.assert_array_equal(got, made(pipe, "style-v2", "a style", "a cat", **options)[[1, 2, 0]])
    plain = made(pipe, "a style", "a cat", "style-v2", negative_prompt="card")
    assert all((a != b).any() for a, b in zip(got, plain))
    options["word_embeddings"] = [("word", vectors(9, 4))]
    assert count_compilations(lambda: made(pipe, "style word", "a word", "card", **options)) == 0


def test_words_work_in_every_part_of_a_prompt(folder):
    """With AND, changes and weights, and in negative prompts, a word is as the tokens whose vectors it has."""
    pipe = models.pipeline()
    table = np.asarray(pipe.params["text"]["text_model"]["embeddings"]["token_embedding"]["embedding"])
    words = [("xyz", table[pipe.tokenizer.encode("red cat")]), ("bad", table[pipe.tokenizer.encode("blue sky")])]
    options = {"guidance_scale": 4.0, "num_steps": 4}
    template = "a {a} AND ({a}:1.3) in a house :0.5", "[{a}:a dog:0.5], <{a}>,", "{b} [a|{a}]"
    texts = [[text.format(a=a, b=b) for text in template] for a, b in (("xyz", "bad"), ("red cat", "blue sky"))]
    with_words = made(pipe, *texts[0], word_embeddings=words, negative_prompt="bad, ugly", **options)
    plain = made(pipe, *texts[1], negative_prompt="blue sky, ugly", **options)
    assert np.abs(with_words.astype(int) - plain).max() <= 1
    without = made(pipe, *texts[0], negative_prompt="bad, ugly", **options)
    assert all((a != b).any() for a, b in zip(with_words, without))


@pytest.mark.parametrize("tower", ["quick_gelu", "gelu"])  # of Stable Diffusion 1 and 2
def test_words_work_with_clip_skip(tower):
    text = dataclasses.replace(models.TINY.text, layers=3, activation=tower)
    pipe = models.pipeline(dataclasses.replace(models.TINY, text=text))
    table = np.asarray(pipe.params["text"]["text_model"]["embeddings"]["token_embedding"]["embedding"])
    own = pipe.with_embeddings({"<cat>": table[pipe.tokenizer.encode("red cat")]})
    contexts = []
    for skip in 1, "diffusers:1":
        layers = layers_used(text, skip)
        got, want = (
            encode_texts(one, [read_text(one, words, Language(), layers)], at_a_time=1)[0]
            for one, words in ((own, "a <cat>, here"), (pipe, "a red cat, here"))
        )
        np.testing.assert_array_equal(got, want)
        contexts.append(got)
    assert (contexts[0] != contexts[1]).any()


def test_tokens_shows_words_of_embeddings(folder, capsys):
    assert main(["tokens", "a photo, card", "--embedding-dir", str(folder)]) == 0
    assert "card" in capsys.readouterr().out
    assert main(["tokens", "a photo, card", "--embedding-dir", str(folder), "--json"]) == 0
    read = json.loads(capsys.readouterr().out)
    assert read["prompts"][0]["texts"][0]["chunks"][0]["tokens"][-3:] == [CLIP_TOKENS + i for i in range(3)]
