"""Pictures of the built-in models, checked by their pixels: every task that they can do, on 64 x 64 pixels."""

import numpy as np
import pytest

import sdjax
from sdjax.loading import builtin
from sdjax.tasks.inpaint import check_method
from sdjax.train.builtin.reader import background
from sdjax.train.builtin.subjects import COLOURS

CAT, FOX = "a cat on a blue background", "a fox on a yellow background"
HALF = np.broadcast_to(np.arange(64) >= 32, (64, 64))  # the right half
STEPS = {"num_steps": 10}


@pytest.fixture(scope="module")
def pipe():
    return sdjax.load(builtin.NAME)


@pytest.fixture(scope="module")
def cat(pipe):
    return sdjax.text_to_image(pipe, CAT, seed=3, **STEPS)[0]


def colour(picture) -> str:
    """Returns the name of the background's colour, the nearest to the median of the rim."""
    distances = ((np.array(list(COLOURS.values())) - background(picture)) ** 2).sum(1)
    return list(COLOURS)[int(distances.argmin())]


def differs(a, b) -> float:
    """Returns the mean difference of two pictures, of 255."""
    return float(np.abs(a.astype(float) - b).mean())


@pytest.mark.slow
def test_backgrounds_are_those_that_the_prompts_name(pipe):
    names = ["red", "green", "black", "white", "pink", "turquoise"]
    pictures = sdjax.text_to_image(pipe, [f"a rocket on a {name} background" for name in names], seed=0, **STEPS)
    assert [colour(picture) for picture in pictures] == names
    middles = pictures[:, 16:48, 16:48].astype(float)
    assert min(middles.std((1, 2)).mean(1)) > 20  # something is drawn on each


@pytest.mark.slow
def test_image_to_image_goes_from_the_picture_to_the_prompt(pipe, cat):
    assert colour(cat) == "blue"
    kept, little, whole = (
        sdjax.image_to_image(pipe, cat, FOX, strength=strength, seed=1, **STEPS)[0] for strength in (0.0, 0.3, 1.0)
    )
    assert differs(kept, cat) < 6 < differs(little, cat) < differs(whole, cat)
    assert [colour(picture) for picture in (kept, little, whole)] == ["blue", "blue", "yellow"]


@pytest.mark.few(1)
@pytest.mark.parametrize("name", builtin.NAMES)
def test_a_part_is_made_anew_and_fits_to_the_rest(pipe, cat, name):
    model = pipe if name == builtin.NAME else sdjax.load(name)
    assert check_method(model.config, None) == ("blend" if name == builtin.NAME else "concat")
    made = sdjax.inpaint(model, cat, HALF, CAT, seed=[0, 1], num_images=2, **STEPS)
    np.testing.assert_array_equal(made[:, ~HALF], np.stack([cat[~HALF]] * 2))
    assert differs(made[0][HALF], made[1][HALF]) > 3
    assert [colour(picture[:, 32:]) for picture in made] == ["blue", "blue"]


@pytest.mark.slow
def test_a_picture_goes_on_beyond_its_edge(pipe, cat):
    wide = sdjax.outpaint(pipe, cat, "a cat and a dog on a blue background", expand=(0, 0, 64, 0), seed=1, **STEPS)[0]
    assert wide.shape == (64, 128, 3)
    np.testing.assert_array_equal(wide[:, :64], cat)
    assert colour(wide[:, 64:]) == "blue"


@pytest.mark.slow
def test_two_passes_make_a_larger_picture_of_the_same(pipe):
    large = sdjax.two_pass(pipe, CAT, seed=3, **STEPS)[0]
    assert large.shape == (128, 128, 3)
    assert colour(large) == "blue"


def test_an_animation_goes_from_one_prompt_to_the_other(pipe, cat):
    frames = sdjax.animate(pipe, [CAT, FOX], seeds=[3, 4], frames=5, **STEPS)
    assert differs(frames[0], cat) < 1
    assert (colour(frames[0]), colour(frames[-1])) == ("blue", "yellow")
    steps = [differs(a, b) for a, b in zip(frames, frames[1:])]
    assert max(steps) < differs(frames[0], frames[-1])
