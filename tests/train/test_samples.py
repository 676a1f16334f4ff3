"""Samples of a training: their options, and the words that are learned."""

import dataclasses
import functools
import types

import numpy as np
import pytest
from models_to_train import TINY

import sdjax
from sdjax.convert import load_model
from sdjax.loading.trainable import by_path, lay_over
from sdjax.nn import TextEncoder
from sdjax.prompts.added_words import AddedWords
from sdjax.tasks import text_to_image
from sdjax.train.config import SamplesConfig
from sdjax.train.samples import SampleMaker, check_samples


def test_samples_are_made_with_their_options(monkeypatch):
    seen = []
    monkeypatch.setattr(
        text_to_image,
        "text_to_image",
        lambda pipe, prompts, **options: seen.append((prompts, options)) or [np.zeros((4, 4, 3), np.uint8)],
    )
    options = {"sampler": "euler", "negative_prompt": ["c", "d"], "height": 64, "width": 64}
    config = SamplesConfig(("a", "b"), num_steps=3, seed=5, options=options)
    SampleMaker(config, types.SimpleNamespace(config=TINY), None, "float32").make(types.SimpleNamespace(config=TINY))
    ((prompts, options),) = seen
    assert prompts == ["a", "b"]
    expected = {"num_steps": 3, "seed": 5, "sampler": "euler", "negative_prompt": ["c", "d"]}
    assert {name: options[name] for name in expected} == expected


def test_options_of_samples_that_the_model_cannot_use_are_refused_before_training():
    size = {"height": 64, "width": 64}
    check_samples(SamplesConfig(("a", "b"), options={**size, "sampler": ["euler", "ddim"]}), TINY)
    for options, sentence in (
        ({"sampler": ["euler", "eulr"]}, "unknown sampler 'eulr'"),
        ({"patches": [["deep_cache:branch=99"], []]}, "branch"),
        ({"height": 33}, "height is a multiple of 8"),
    ):
        with pytest.raises(ValueError, match=sentence):
            check_samples(SamplesConfig(("a", "b"), options={**size, **options}), TINY)


def nested(path, leaf):
    return functools.reduce(lambda inner, name: {name: inner}, reversed(path.split("/")), leaf)


def test_samples_know_the_words_that_are_learned(pictures):
    start, words = load_model(pictures / "tiny"), {"<sq>": 2}
    pipe = sdjax.load(pictures / "tiny", dtype="float32")
    prompts = ("a <sq> on a wall", "a red square")
    rows = 3.0 * np.eye(2, TINY.text.width, dtype=np.float32)
    tables = {path: leaf for path, leaf in by_path(start.params["text"]).items() if path.endswith("/embedding")}
    (path, table), *_ = (one for one in tables.items() if "token" in one[0])
    params = lay_over(nested(path.removesuffix("embedding") + "rows", rows), start.params["text"])
    told = dataclasses.replace(pipe, params={**pipe.params, "text": params})
    told = dataclasses.replace(told, tokenizer=AddedWords.to(pipe.tokenizer, words))
    with_word, plain = told.encode_prompt(prompts)
    np.testing.assert_allclose(plain, np.asarray(pipe.encode_prompt(["a red square"]))[0], atol=1e-5)
    # Where the word is said in the place of its rows, a table with them gives the same
    longer = np.concatenate([table, rows])
    ids = AddedWords.to(pipe.tokenizer, words)([prompts[0]], length=TINY.text.max_length)
    text = dataclasses.replace(TINY.text, vocab_size=len(longer))
    whole = lay_over(nested(path, longer), start.params["text"])
    np.testing.assert_allclose(with_word, TextEncoder(text).apply({"params": whole}, ids)[0], atol=1e-5)
