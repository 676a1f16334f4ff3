"""Sessions: progress, previews, stopping, Ctrl-C; the map from latents to colours."""

import jax
import numpy as np
import pytest

import sdjax
from sdjax.pictures import resize
from sdjax.tasks.request import Request

import models
from checks import near

ONE = {"devices": jax.devices()[:1]}
SIZES = [Request("a cat", seed=1, num_steps=12), Request("a dog", seed=2, num_steps=7, height=80)]


def test_a_session_is_iterated_and_gives_the_tasks_pictures():
    pipe = models.pipeline()
    session = sdjax.text_to_image.session(pipe, "a cat", seed=[1, 2], num_steps=12, **ONE)
    steps = [(step.done, step.total, step.which, step.finished) for step in session]
    assert steps == [(5, 12, (0, 1), ()), (10, 12, (0, 1), ()), (12, 12, (0, 1), (0, 1))]
    want = sdjax.text_to_image(pipe, "a cat", seed=[1, 2], num_steps=12, **ONE)
    np.testing.assert_array_equal(session.result(), want)


def test_every_task_has_a_session():
    for name in ("generate", "image_to_image", "two_pass", "inpaint", "outpaint", "detail", "depth_to_image", "animate",
                 "upscale", "image_variations", "prior_to_image"):  # fmt: skip
        assert callable(getattr(sdjax, name).session)
    session = sdjax.image_to_image.session(models.pipeline(), models.picture(), "a cat", num_steps=4, **ONE)
    assert isinstance(session, sdjax.Session)
    want = sdjax.image_to_image(models.pipeline(), models.picture(), "a cat", num_steps=4, **ONE)
    np.testing.assert_array_equal(session.result(), want)


def test_cancelling_keeps_what_is_finished():
    pipe = models.pipeline()
    session = sdjax.generate.session(pipe, SIZES, **ONE)
    for step in session:
        if step.which == (1,):
            session.cancel()
    first, second = session.result()
    assert second is None
    assert near(first, sdjax.generate(pipe, SIZES[:1], **ONE)[0])
    early = sdjax.generate.session(pipe, SIZES, **ONE)
    early.cancel()
    assert early.result() == [None, None]


def test_a_picture_whose_steps_are_over_is_finished_though_its_batch_goes_on():
    pipe = models.pipeline()
    requests = [Request("a cat", seed=1, num_steps=12), Request("a dog", seed=2, num_steps=4)]
    session = sdjax.generate.session(pipe, requests, **ONE)
    assert next(session).finished == (1,)
    session.cancel()
    long, short = session.result()
    assert long is None
    assert near(short, sdjax.generate(pipe, requests[1:], **ONE)[0])


def test_interrupting_keeps_what_is_finished():
    pipe, calls = models.pipeline(), []

    def press(done, total):
        calls.append(done)
        if done > 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        sdjax.generate(pipe, SIZES, progress=press, **ONE)
    assert isinstance(caught.value, sdjax.Interrupted)
    first, second = caught.value.pictures
    assert second is None
    assert near(first, sdjax.generate(pipe, SIZES[:1], **ONE)[0])
    assert calls == [5, 10, 12, 17]


def test_interrupting_keeps_a_picture_whose_steps_are_over_though_its_batch_goes_on():
    def press(done, total):
        raise KeyboardInterrupt

    requests = [Request("a cat", seed=1, num_steps=12), Request("a dog", seed=2, num_steps=4)]
    with pytest.raises(sdjax.Interrupted) as caught:
        sdjax.generate(models.pipeline(), requests, progress=press, **ONE)
    assert [picture is not None for picture in caught.value.pictures] == [False, True]


def test_a_callback_gets_previews():
    seen = []
    sdjax.text_to_image(models.pipeline(), "a cat", seed=[1, 2], num_steps=7, **ONE,
                        on_step=lambda step: seen.append((step.done, step.total, step.preview())))  # fmt: skip
    assert [counts for *counts, _ in seen] == [[5, 7], [7, 7]]
    for *_, preview in seen:
        assert preview.shape == (2, 8, 8, 3)
        assert preview.dtype == np.uint8


def test_a_session_shows_pictures_and_previews_and_nothing_of_the_rest():
    session = sdjax.generate.session(models.pipeline(), SIZES, **ONE)
    assert session.preview() == [None, None]
    shapes = [[None if one is None else one.shape for one in session.preview()] for _ in session]
    assert shapes[0] == [(8, 8, 3), None]
    assert shapes[-1] == [(64, 64, 3), (10, 8, 3)]


@pytest.mark.slow
def test_a_preview_is_like_the_picture():
    """The built-in model's last preview beside its picture, made as small."""
    pipe, previews = sdjax.load(), []
    pictures = sdjax.text_to_image(pipe, "a red apple on a blue background", seed=[1, 2], num_steps=12,
                                   on_step=lambda step: previews.append(step.preview()), **ONE)  # fmt: skip
    for picture, last, first in zip(pictures, previews[-1], previews[0]):
        small = resize(picture, *last.shape[:2], "bilinear")
        assert np.corrcoef(small.ravel(), last.ravel())[0, 1] > 0.9
        assert np.corrcoef(small.ravel(), first.ravel())[0, 1] > 0.5  # x0 as the network guesses it, not the noise
