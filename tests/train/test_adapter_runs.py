"""Whole runs that train adapters and embeddings."""

import json

import jax
import numpy as np
import pytest
from models_to_train import TINY, write_model
from picture_sets import write_folder

import sdjax
from sdjax.adapters import merge
from sdjax.adapters.attached import without_rows
from sdjax.config import ConfigError
from sdjax.configs import lora, pivotal, textual_inversion
from sdjax.convert.adapters.load import load_adapter
from sdjax.description import build
from sdjax.evaluate.benchmark import random_model
from sdjax.loading.trainable import by_path
from sdjax.train.builtin import vocabulary
from sdjax.train.config import TrainConfig
from sdjax.train.run import Run


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a training set and a model."""
    folder = tmp_path_factory.mktemp("place")
    write_folder(folder / "pictures", 8, sizes=((16, 16),))
    tokenizer = vocabulary.learn(iter(["a red square on a wall", "a blue square"] * 20), TINY.text.vocab_size)
    write_model(TINY, random_model(TINY, "float32").params, tokenizer, folder / "model")
    return folder


def values(place, module, steps, **trainable):
    config = module.get_config().to_dict()
    config["model"]["path"] = str(place / "model")
    config["data"] |= {"parts": [{"source": {"folder": str(place / "pictures")}}], "buckets": False}
    config["data"]["captions"] |= {"prefix": "<cat> "}
    config["optim"] |= {"steps": steps, "warmup": 0, "decay": "constant", "learning_rate": 1e-2, "part_rates": {}}
    config["batch_size"] = 4
    config["log"] |= {"tensorboard": False, "every": 1}
    config["trainable"] |= trainable
    return config


def run(folder, config, devices=1):
    made = Run(build(TrainConfig, config), folder, lambda text: None, devices=jax.devices()[:devices])
    return made.train()


@pytest.mark.slow  # compiles a step of a whole model several times
@pytest.mark.parametrize("options", [{}, {"dora": True, "pissa": True}, {"kind": "lokr"}])
def test_a_run_continues_bit_for_bit_and_its_folder_and_file_are_the_model(place, tmp_path, options):
    if "kind" in options:
        config = values(place, lora, 4)
        config["trainable"] = {"targets": "linear", "rank": 2, **options}
    else:
        config = values(place, lora, 4, rank=2, **options)
    whole = run(tmp_path / "whole", config)
    parts = json.loads(json.dumps(config))
    parts["optim"]["steps"] = 2
    run(tmp_path / "parts", parts)
    parts["optim"]["steps"] = 4
    continued = run(tmp_path / "parts", parts)
    jax.tree.map(np.testing.assert_array_equal, continued.params, whole.params)
    start, loaded = random_model(TINY, "float32").params, sdjax.load(tmp_path / "whole", dtype="float32")
    moved = {path for path, leaf in by_path(loaded.params).items() if np.any(leaf != by_path(start)[path])}
    assert moved
    assert all(path.endswith("kernel") for path in moved)
    if options:
        return
    merged = merge(start, [(load_adapter(tmp_path / "whole" / "adapter.safetensors", TINY).adapter, 1.0)])
    for path, leaf in by_path(merged).items():
        np.testing.assert_allclose(by_path(loaded.params)[path], leaf, rtol=1e-5, atol=1e-6)


@pytest.mark.slow  # compiles a step of a whole model twice
def test_the_fixed_model_may_be_split_over_devices(place, tmp_path):
    config = values(place, lora, 3, rank=2)
    run(tmp_path / "one", config)
    config["parallel"] |= {"data": 1, "fsdp": 2, "whole": 64}
    run(tmp_path / "split", config, devices=2)
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("one", "split")
    ]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


@pytest.mark.slow  # compiles a step of a whole model twice
def test_only_the_vectors_of_words_learn_and_with_pivotal_tuning_an_adapter_too(place, tmp_path):
    words = {"words": {"<cat>": 2}, "initial": {"<cat>": "red square"}}
    config = values(place, textual_inversion, 2, **words)
    config["samples"] |= {
        "prompts": ["a <cat>"], "every": 2, "num_steps": 1, "options": {"height": 64, "width": 64}
    }  # fmt: skip
    state = run(tmp_path / "words", config)
    assert [leaf.shape for leaf in jax.tree.leaves(state.params)] == [(2, TINY.text.width)]
    assert (tmp_path / "words" / "embeddings" / "cat.safetensors").is_file()
    loaded = sdjax.load(tmp_path / "words", dtype="float32")
    jax.tree.map(np.testing.assert_array_equal, without_rows(loaded.params), random_model(TINY, "float32").params)
    (context, other), rows = loaded.encode_prompt(["a <cat>", "a"]), jax.tree.leaves(state.params)[0]
    assert np.any(context != other)
    np.testing.assert_array_equal(by_path(loaded.params)["text/text_model/embeddings/token_embedding/rows"], rows)
    loaded.save(tmp_path / "model", to="native")  # the model without the word
    jax.tree.map(np.testing.assert_array_equal, sdjax.load(tmp_path / "model", dtype="float32").params,
                 random_model(TINY, "float32").params)  # fmt: skip
    config = values(place, pivotal, 2)
    config["trainable"]["words"] |= words
    config["trainable"]["adapter"] |= {"rank": 2}
    state = run(tmp_path / "both", config)
    assert (tmp_path / "both" / "adapter.safetensors").is_file()
    assert {path.split("/")[0] for path in by_path(state.params)} == {"unet", "text"}


def test_words_need_the_text_encoder_among_the_trained_parts(place, tmp_path):
    config = values(place, textual_inversion, 2, words={"<cat>": 2})
    with pytest.raises(ConfigError, match="textual inversion needs .text. in train"):
        run(tmp_path / "run", config | {"train": ("unet",)})
    assert not (tmp_path / "run" / "checkpoints").exists()
