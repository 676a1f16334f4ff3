"""Clips: frames that see each other, windows of frames, prompts at frames, noise, pictures to start from, refusals."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest

import sdjax
from sdjax import MotionUse, convert
from sdjax.adapters.motion import Motion, blocks_without_attention
from sdjax.adapters.patch import patched
from sdjax.checks.notes import Note
from sdjax.config import ScheduleConfig, UNetConfig
from sdjax.diffusion.clip import ClipNetwork, FrameWindows, shuffled
from sdjax.diffusion.conditioning import Conditioning
from sdjax.diffusion.network import FunctionNetwork
from sdjax.nn.motion import MotionModule
from sdjax.noise import SOURCES, PictureNoise, TorchCPU
from sdjax.tasks.clip import _requests

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


class Block(nn.Module):
    """A block of a UNet with an attention that is only a norm."""

    @nn.compact
    def __call__(self, x):
        return nn.LayerNorm(use_bias=False, use_scale=False, name="attentions_0")(x)


class Network(nn.Module):
    """A network with one block, without parameters."""

    @nn.compact
    def __call__(self, x):
        return Block(name="down_blocks_0")(x)


def test_branches_of_guidance_are_clips_of_their_own_and_other_patches_do_not_see_the_modules():
    seen = []

    class Watching:
        def intercept(self, shared, own):
            return lambda method, args, kwargs, context: (seen.append(context.module.name), method(*args, **kwargs))[1]

    def run(x):
        with patched([Motion(motion_files.V3, 3), Watching()], [motion_files.modules().params, None]):
            return Network().apply({}, x)

    x = jax.random.normal(jax.random.key(1), (3, 2, 2, 2, 32))  # frames, branches
    both = run(x.reshape(6, 2, 2, 32)).reshape(x.shape)
    np.testing.assert_allclose(both[:, 1], run(x[:, 1]), atol=1e-5)  # sums in another order
    assert set(seen) == {None, "down_blocks_0", "attentions_0"}


def test_modules_stand_behind_residual_blocks_where_there_is_no_attention():
    x = jax.random.normal(jax.random.key(1), (3, 2, 2, 32))
    with patched([Motion(motion_files.V3, 3, ("down_blocks_0",))], [motion_files.modules().params]):
        np.testing.assert_array_equal(
            Network().apply({}, x), nn.LayerNorm(use_bias=False, use_scale=False).apply({}, x)
        )
    assert blocks_without_attention(UNetConfig()) == ("down_blocks_3", "up_blocks_0")


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


@pytest.mark.slow  # compiles networks
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


def test_pictures_to_start_from_are_kept_at_strength_0():
    pictures = [models.picture(seed=i) for i in range(4)]
    with pytest.warns(Note, match="leaves none"):
        frames = clip("a cat", image=pictures, strength=0.0)
    with pytest.warns(Note, match="leaves none"):
        alone = sdjax.image_to_image(
            models.pipeline(), pictures, "a cat", strength=0.0, seed=0, devices=jax.devices()[:1], num_steps=2
        )  # fmt: skip
    assert near(frames, alone)


@pytest.mark.parametrize(
    ("source", "seeds", "places"),
    [
        (None, [7, 8, 9], [None] * 3),
        ("torch_cuda", [7, 8, 9], [None] * 3),
        ("comfyui", [7] * 3, [(0, 3), (1, 3), (2, 3)]),
    ],
)
def test_frames_have_the_noise_that_the_tool_gives_a_batch(source, seeds, places):
    requests = _requests([("a", "")] * 3, 7, MotionUse("m"), {"noise_source": source})
    assert [one.seed for one in requests] == seeds
    assert [one.noise_batch for one in requests] == places


def test_diffusers_draws_the_noise_of_a_clip_with_the_frames_behind_the_channels():
    noise = PictureNoise(SOURCES["diffusers"], 5, (4, 8, 8), place=(2, 3))
    noise.of_clip = True
    np.testing.assert_array_equal(noise.start(), TorchCPU(5).randn((1, 4, 3, 8, 8))[0, :, 2])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"seeds": [1, 2]}, "one seed"),
        ({"exact": True}, "exact divides a batch"),
        ({"frames": 0}, "from 1 to 10000"),
        ({"frames": 10**9}, "from 1 to 10000"),
        ({"image": [np.zeros((64, 64, 3), np.uint8)] * 3}, "one picture for all frames, or one for each of the 4"),
        ({"sampler": ["ddim", "dpm_solver_adaptive"] * 2}, "made together"),
        ({"motion": 3}, "motion is a file"),
    ],
)
def test_what_no_clip_can_be_is_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        clip("a cat", **options)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"frame_window": 33}, "at most 32"),
        ({"frame_window": 4, "frame_overlap": 4}, "less than frame_window"),
        ({"loras": "a"}, "list"),
        ({"loras": ["nothing.ckpt"]}, "nothing.ckpt"),
    ],
)
def test_motion_uses_that_do_not_work_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        clip("a cat", motion=MotionUse(motion_files.modules(), **settings))


def test_guidance_that_looks_into_the_network_needs_one_window():
    with pytest.raises(ValueError, match="at most 2 frames"):
        clip("a cat", motion=MotionUse(motion_files.modules(), frame_window=2, frame_overlap=1), guidance="pag")
