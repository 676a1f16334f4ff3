"""Fixtures for tests of training: the emoji, a set of pictures with models, and programs that runs share."""

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from models_to_train import MODEL, TINY, write_model
from PIL import Image
from whole_runs import COLOURS

from sdjax.evaluate.benchmark import random_model
from sdjax.train.builtin import emoji, vocabulary


@pytest.fixture(scope="session")
def sprites():
    """Returns the emoji at 64 x 64 pixels; skips without the font (apt install fonts-noto-color-emoji)."""
    try:
        return emoji.Sprites.render(64)
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """Runs of one module compile what they have in common once."""
    compilation_cache.reset_cache()
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("programs")))
    yield
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of sixteen pictures of 64 x 64 with captions; and in it a model with random weights that knows them."""
    folder = tmp_path_factory.mktemp("set")
    rng = np.random.default_rng(0)
    for i in range(16):
        name, colour = list(COLOURS.items())[i % 4]
        pixels = np.clip(np.array(colour) + rng.normal(0, 8, (64, 64, 1)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
        (folder / f"{i:02d}.txt").write_text(f"a {name} square")
    captions = [f"a {name} square on a wall" for name in COLOURS]
    tokenizer = vocabulary.learn(iter(captions * 20), MODEL.text.vocab_size)
    for model in (MODEL, TINY):
        write_model(model, random_model(model, "float32").params, tokenizer, folder / model.name)
    return folder
