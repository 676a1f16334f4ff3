"""The reader knows what real pictures show, and says when a picture shows something else."""

import numpy as np
import pytest

from sdjax.train.builtin import emoji, subjects
from sdjax.train.builtin.reader import Reader, background

NAMES = subjects.names()


@pytest.fixture(scope="module")
def reader(sprites):
    return Reader(sprites)


def accuracy(reader, pictures, scenes):
    """Returns the shares of backgrounds and of subjects that are read as they are."""
    readings = [reader.read(picture, len(scene.subjects)) for picture, scene in zip(pictures, scenes)]
    right = [s in reading.subjects for reading, scene in zip(readings, scenes) for s in scene.subjects]
    return np.mean([r.colour == s.colour for r, s in zip(readings, scenes)]), np.mean(right)


def check_reading(reader, sprites, count):
    scenes = emoji.scenes(11, 0, count)
    colours, read = accuracy(reader, [sprites.draw(scene) for scene in scenes], scenes)
    assert colours == 1.0
    assert read >= 0.99


def test_real_pictures_are_read(reader, sprites):
    check_reading(reader, sprites, 40)


@pytest.mark.slow
def test_real_pictures_are_read_in_number(reader, sprites):
    check_reading(reader, sprites, 1000)


def test_every_subject_is_read_on_a_held_out_background(reader, sprites):
    size, wrong = 40, []
    pairs = np.argwhere(emoji.held_out())
    for subject, colour in pairs[:: len(pairs) // 40]:
        rgb = list(subjects.COLOURS.values())[colour]
        scene = emoji.Scene((int(subject),), int(colour), ((size, 11, 7),), rgb, "")
        reading = reader.read(sprites.draw(scene))
        if (reading.colour, reading.subjects[0]) != (colour, subject):
            wrong.append(NAMES[subject])
        else:  # to within the two pixels of its grid, whose half can leave outlines over
            assert np.abs(np.subtract(reading.boxes[0], (size, 11, 7))).max() <= 2
            assert reading.left_over < 0.3
    assert not wrong


def test_a_picture_of_something_else_leaves_much_unexplained(reader):
    rng = np.random.default_rng(0)
    picture = np.full((64, 64, 3), 200, np.uint8)
    picture[20:44, 20:44] = rng.integers(0, 256, (24, 24, 3))
    assert reader.read(picture).left_over > 0.3


def test_a_background_is_read_past_a_subject_at_the_rim():
    picture = np.full((64, 64, 3), (46, 92, 214), np.uint8)
    picture[:24, :24] = 255
    np.testing.assert_array_equal(background(picture), (46, 92, 214))


def test_a_picture_of_another_size_is_refused(reader):
    with pytest.raises(ValueError, match="takes pictures of side 64, got .32, 64, 3."):
        reader.read(np.zeros((32, 64, 3), np.uint8))
