"""With a tool's profile a seed gives the picture known from there, with the same weights, to two levels of 255."""

import known_pictures
import numpy as np
import pytest
from known_pictures import CASES, GOLDEN, KEPT, NEGATIVE, PROMPT, SCALE, SEED, STEPS

import sdjax

import models


def made(name):
    """Returns sdjax's picture of a case."""
    options = {"negative_prompt": NEGATIVE, "seed": SEED, "num_steps": STEPS, "guidance_scale": SCALE, **CASES[name]}
    if "strength" in options:
        return sdjax.image_to_image(models.pipeline(), known_pictures.start_picture(), PROMPT, **options)[0]
    return sdjax.text_to_image(models.pipeline(), PROMPT, **options)[0]


def compare(ours, theirs):
    difference = np.abs(ours.astype(int) - theirs.astype(int))
    assert difference.max() <= 2
    assert difference.mean() < 0.1
    assert ours.std() > 10


@pytest.mark.few(3)
@pytest.mark.parametrize("name", CASES)
def test_a_seed_gives_the_known_picture(name):
    compare(made(name)[KEPT], np.load(GOLDEN)[name])


@pytest.mark.torch
def test_the_known_pictures_are_those_of_the_tools(tmp_path):
    models.pipeline().save(tmp_path / "model", to="diffusers")
    for name, theirs in known_pictures.references(str(tmp_path / "model")).items():
        np.testing.assert_array_equal(np.load(GOLDEN)[name], theirs[KEPT], err_msg=name)
        compare(made(name), theirs)
