"""The built-in model's pictures: what is drawn, what captions say, and which pairs are never seen."""

import itertools

import numpy as np
import pytest

from sdjax.train.builtin import emoji, subjects

NAMES, COLOURS = subjects.names(), list(subjects.COLOURS)


@pytest.fixture(scope="module")
def scenes():
    return emoji.scenes(3, 5, 4000)


def test_there_are_enough_subjects_and_colours_with_names_of_their_own():
    assert len(set(NAMES)) == len(NAMES) == len(set(subjects.CHARACTERS)) >= 200
    assert len(COLOURS) >= 10
    assert all(name == name.lower().strip() for name in NAMES)


def test_backgrounds_lie_further_apart_than_the_jitter_moves_them():
    values = np.array(list(subjects.COLOURS.values()), float)
    nearest = min(np.linalg.norm(a - b) for a, b in itertools.combinations(values, 2))
    assert nearest > 2 * emoji.JITTER * 3**0.5  # two corners of the cubes around them would meet at this distance


@pytest.mark.parametrize(
    ("noun", "phrase"), [("apple", "an apple"), ("red car", "a red car"), ("unicorn", "a unicorn"), ("owl", "an owl")]
)
def test_articles(noun, phrase):
    assert subjects.with_article(noun) == phrase


def test_a_tenth_of_the_pairs_is_held_out_whatever_subject_or_colour():
    held = emoji.held_out()
    assert held.shape == (len(NAMES), len(COLOURS))
    n = held.size  # binomial: within 3 standard deviations of a tenth
    assert abs(held.mean() - 0.1) < 3 * (0.09 / n) ** 0.5
    assert held.mean(axis=1).max() < 0.6  # every subject is seen on at least some colours ...
    assert held.mean(axis=0).max() < 0.2  # ... and every colour behind most subjects


def test_held_out_pairs_are_never_drawn_and_every_other_pair_can_be(scenes):
    held = emoji.held_out()
    seen = {(s, scene.colour) for scene in scenes for s in scene.subjects}
    assert not any(held[pair] for pair in seen)
    # 4000 scenes hold 5000 subjects for 2552 pairs, so that a share of exp(-5000 / 2552) is missed
    assert len(seen) / (~held).sum() == pytest.approx(1 - np.exp(-5000 / (~held).sum()), abs=0.03)


def test_a_batch_is_a_function_of_seed_and_number():
    assert emoji.scenes(1, 2, 50) == emoji.scenes(1, 2, 50)
    assert emoji.scenes(1, 2, 50)[:20] == emoji.scenes(1, 2, 20)
    assert emoji.scenes(1, 2, 50) != emoji.scenes(1, 3, 50)
    assert emoji.scenes(1, 2, 50) != emoji.scenes(2, 2, 50)


def test_captions_say_what_is_there(scenes):
    for scene in scenes:
        assert all(NAMES[s] in scene.caption for s in scene.subjects)
        if "background" in scene.caption:
            assert scene.caption.endswith(f" {COLOURS[scene.colour]} background")
        (size, left, top), *others = scene.boxes
        if others:
            first, second = (left, others[0][1]) if " above " not in scene.caption else (top, others[0][2])
            assert first + size <= 32 <= second
            continue
        assert scene.caption.startswith("a small") == (size <= 26)
        assert scene.caption.startswith("a big") == (size >= 50)
        room = 64 - size
        for words, place, wanted in [
            ("on the left of", left, 0), ("on the right of", left, room), ("at the top of", top, 0),
            ("at the bottom of", top, room), ("in the middle of", left, room / 2),
        ]:  # fmt: skip
            assert words not in scene.caption or abs(place - wanted) <= 2.5


def test_collages_fill_the_quarters_and_keep_to_the_pairs_that_are_not_held_out():
    scenes = emoji.collages(0, 0, 300)
    assert scenes == emoji.collages(0, 0, 300)
    assert scenes != emoji.collages(0, 1, 300)
    for scene in scenes:
        assert not emoji.held_out()[list(scene.subjects), scene.colour].any()
        assert len(set(scene.subjects)) == 4
        for quarter, (size, left, top) in enumerate(scene.boxes):
            assert size in emoji.SIZES
            for corner, start in ((left, 32 * (quarter % 2)), (top, 32 * (quarter // 2))):
                assert start <= corner
                assert corner + size <= start + 32


def test_subjects_lie_inside_the_picture_and_apart(scenes):
    for scene in scenes:
        for size, left, top in scene.boxes:
            assert size in emoji.SIZES
            assert min(left, top) >= 0
            assert max(left, top) + size <= 64


def test_drawing_blends_by_opacity():
    size = emoji.SIZES[0]
    pixels = []
    for s in emoji.SIZES:  # one subject: left half opaque red, right half of half opacity and blue
        sprite = np.zeros((1, s, s, 4), np.uint8)
        sprite[:, :, : s // 2] = 255, 0, 0, 0
        sprite[:, :, s // 2 :] = 0, 0, 128, 127
        pixels.append(sprite)
    picture = emoji.Sprites(64, tuple(pixels)).draw(emoji.Scene((0,), 0, ((size, 4, 6),), (100, 200, 40), ""))
    assert tuple(picture[0, 0]) == (100, 200, 40)
    assert tuple(picture[6, 4]) == (255, 0, 0)
    # 127 / 255 of the background shine through: 49.8, 99.6, and 19.9 + 128
    assert tuple(picture[6, 4 + size - 1]) == (50, 100, 148)
    assert tuple(picture[6 + size, 4]) == (100, 200, 40)


def test_what_is_missing_is_said():
    with pytest.raises(FileNotFoundError, match="nowhere.ttf is no file; install it .* fonts-noto-color-emoji"):
        emoji.find_font("nowhere.ttf")
    with pytest.raises(ValueError, match="multiple of 64"):
        emoji.Sprites.render(100)


def test_sprites_fill_their_boxes_and_differ(sprites):
    stack = sprites.pixels[emoji.SIZES.index(40)].astype(float)
    opacity = 255 - stack[..., 3]
    assert (opacity.max(axis=(1, 2)) > 250).all()
    sides = [(opacity > 16).any(axis=axis).sum(axis=1) for axis in (1, 2)]
    assert (np.maximum(*sides) >= 38).all()  # the longer side; resizing may fade a pixel at each end
    flat = stack.reshape(len(stack), -1)
    squares = (flat**2).sum(1)
    distances = squares[:, None] + squares[None] - 2 * flat @ flat.T + np.diag(np.full(len(flat), np.inf))
    rms = (distances.min() / flat.shape[1]) ** 0.5
    assert rms > 12  # of 255, a difference that one sees: no two subjects share a picture


def test_a_picture_shows_its_background_and_its_subject(sprites):
    for scene in emoji.scenes(0, 0, 50):
        picture = sprites.draw(scene)
        outside = np.ones((64, 64), bool)
        for size, left, top in scene.boxes:
            outside[top : top + size, left : left + size] = False
            assert (picture[top : top + size, left : left + size] != scene.rgb).any(-1).mean() > 0.1
        assert (picture[outside] == scene.rgb).all()
