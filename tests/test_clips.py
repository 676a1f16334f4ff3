"""Clips: frames that see each other, windows of frames, prompts at frames, noise, pictures to start from, refusals."""

import dataclasses

import jax
import numpy as np
import pytest

import sdjax
from sdjax import convert
from sdjax.adapters.motion import Motion
from sdjax.adapters.patch import patched
from sdjax.config import ScheduleConfig
from sdjax.diffusion.clip import ClipNetwork, FrameWindows, shuffled
from sdjax.diffusion.conditioning import Conditioning
from sdjax.diffusion.network import FunctionNetwork
from sdjax.nn import UNet
from sdjax.nn.motion import MotionModule

import models
import motion_files
from checks import near

FEW = {"num_steps": 2, "height": 64, "width": 64, "frames": 4, "guidance_scale": 3.0}


def clip(*args, motion=None, **options):
    return sdjax.animate(models.pipeline(), *args, motion=motion or motion_files.modules(), **{**FEW, **options})


def still() -> convert.LoadedMotion:
    """Returns motion modules that change nothing."""
    return convert.LoadedMotion(motion_files.V3, jax.tree.map(np.zeros_like, motion_files.modules().params))


def test_the_first_frames_norm_sees_no_other_frame_unless_it_counts_all():
    x = jax.random.normal(jax.random.key(0), (1, 4, 2, 2, 32))
    params = motion_files.modules().params["down_blocks_0"]["motion_modules_0"]
    still = {**params, "transformer_blocks_0": jax.tree.map(np.zeros_like, params["transformer_blocks_0"])}
    alone = MotionModule(motion_files.V3).apply({"params": still}, x)  # zero attention: only the norm can mix frames
    brighter = x.at[:, 1:].multiply(7)
    np.testing.assert_array_equal(MotionModule(motion_files.V3).apply({"params": still}, brighter)[:, 0], alone[:, 0])
    over = MotionModule(motion_files.V3, over_frames=True)
    assert not np.allclose(over.apply({"params": still}, brighter)[:, 0], over.apply({"params": still}, x)[:, 0])


def test_branches_of_guidance_are_clips_of_their_own():
    pipe, patch = models.pipeline(), Motion(motion_files.V3, 3)
    draw = jax.random.normal(jax.random.key(1), (3, 2, 8, 8, 4))  # frames, branches
    t, context = np.full(6, 500.0), np.ones((6, 77, 32), np.float32)

    def run(x, n):
        with patched([patch], [motion_files.modules().params]):
            return UNet(pipe.config.unet).apply({"params": pipe.params["unet"]}, x, t[:n], context[:n])

    both = run(draw.reshape(6, 8, 8, 4), 6).reshape(3, 2, 8, 8, 4)
    np.testing.assert_allclose(both[:, 1], run(draw[:, 1], 3), atol=1e-5)  # sums in another order


@pytest.mark.parametrize(
    ("frames", "length", "loop"), [(1, 16, False), (16, 16, True), (17, 16, False), (40, 16, True)]
)
def test_every_frame_is_in_a_window_and_neighbours_share_frames(frames, length, loop):
    windows = FrameWindows(frames, length, 4, loop)
    places = windows.places()
    assert set(places.ravel()) == set(range(frames))
    for one, other in zip(places, places[1:]):
        assert len(set(one) & set(other)) >= 4
    if loop:
        assert any({0, frames - 1} <= set(row) and np.any(np.diff(row) < 0) for row in places)


def test_windows_average_and_a_constant_network_stays_constant():
    windows = FrameWindows(7, 4, 2)
    seen = FunctionNetwork(lambda x, t, conditioning: x * t[:, None, None, None])
    x = np.random.default_rng(0).standard_normal((14, 2, 2, 4)).astype(np.float32)
    out, _ = ClipNetwork(seen, windows)({}, x, np.full(14, 2.0, np.float32), Conditioning(), ())
    np.testing.assert_allclose(out, 2 * x, rtol=1e-6)


def test_shuffled_noise_repeats_the_noise_of_the_frames_before():
    order = shuffled(40, 16, 12, 0)
    assert order[:16].tolist() == list(range(16))
    assert sorted(order[16:28]) == list(range(12))
    assert set(order) == set(range(16))


def test_modules_that_change_nothing_leave_the_pictures_of_text_to_image_with_linear_betas():
    pipe = models.pipeline()
    frames = clip("a cat", seeds=3, motion=still())
    linear = dataclasses.replace(pipe, config=dataclasses.replace(pipe.config, schedule=ScheduleConfig("linear")))
    options = {name: value for name, value in FEW.items() if name != "frames"}
    pictures = sdjax.text_to_image(linear, "a cat", seed=3, num_images=4, devices=jax.devices()[:1], **options)
    assert near(frames, pictures)
    assert not near(clip("a cat", seeds=3), pictures)


def test_prompts_stand_at_their_frames():
    travelling = clip({0: "a cat", 3: "a dog"}, motion=still())
    for frame, text in (0, "a cat"), (3, "a dog"):
        assert near(travelling[frame], clip(text, motion=still())[frame])
    assert not near(travelling[1], clip("a cat", motion=still())[1])
