"""Upscaling: sizes, noise levels, the reference's sampling, what the picture made depends on, refusals."""

import dataclasses

import jax
import numpy as np
import pytest

import sdjax
from sdjax import configs
from sdjax.config import ConfigError, UNetConfig, VAEConfig
from sdjax.tasks import inputs
from sdjax.tasks import upscale as module
from sdjax.tasks.upscale import upscale

import models
from checks import near

# The released upscaler's build, narrow: no attention at level 0, cross-attention only but in the last level, labels
TINY = dataclasses.replace(
    models.TINY,
    name="tiny_upscaler",
    unet=UNetConfig(in_channels=7, channels=(32, 32), heads=(0, 4), mid_heads=4, transformer_depth=(1, 1),
                    self_attention=(False, True), num_res_blocks=1, context_dim=32, num_classes=400),
    vae=VAEConfig(channels=(32, 32, 32), num_res_blocks=1, scale_factor=0.08333),
    schedule=configs.get("x4_upscaler").schedule,
    guidance_scale=4.0,
)  # fmt: skip
SIDE = 32
FEW = {"num_steps": 2, "devices": jax.devices()[:1]}


@pytest.fixture
def small(monkeypatch):
    """Pads to 32 x 32 instead of 128 x 128: the decoder's attention is then 256 times quicker."""
    monkeypatch.setattr(inputs, "SMALLEST", SIDE)
    monkeypatch.setattr(inputs, "MULTIPLE", SIDE)


def picture(seed: int = 0, height: int = SIDE, width: int = SIDE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def pipeline():
    return models.pipeline(TINY)


@pytest.mark.slow
def test_pictures_of_any_size_come_back_four_times_as_large(small):
    sizes = [(32, 32), (17, 25), (1, 1), (32, 19)]  # all padded to 32 x 32: one batch
    made = upscale(pipeline(), [picture(i, *size) for i, size in enumerate(sizes)], **FEW)
    assert [m.shape for m in made] == [(4 * h, 4 * w, 3) for h, w in sizes]
    assert all(m.dtype == np.uint8 for m in made)


def test_padding_repeats_the_edge_at_the_right_and_bottom():
    given = picture(0, 65, 100)
    padded = inputs.pad(given)
    assert padded.shape == (128, 128, 3)
    np.testing.assert_array_equal(padded[:65, :100], given)
    np.testing.assert_array_equal(padded[65:, :100], np.broadcast_to(given[-1:], (63, 100, 3)))
    assert inputs.pad(picture(0, 129, 512)).shape == (192, 512, 3)


@pytest.mark.slow
def test_each_input_changes_the_picture_and_a_seed_repeats_it(small):
    pictures, four = [picture(0)] * 4, {**FEW, "prompt": ["a cat"] * 4, "seed": [1] * 4}
    first = upscale(pipeline(), pictures, **four)
    assert near(first[0], first[1])
    np.testing.assert_array_equal(first, upscale(pipeline(), pictures, **four))
    others = {"prompt": ["a dog", *["a cat"] * 3], "seed": [1, 1, 2, 1]}
    changed = upscale(pipeline(), [picture(0), picture(1), *pictures[2:]], **{**four, **others})
    for i, name in enumerate(("prompt", "picture", "seed")):
        assert not near(first[i], changed[i]), name
    assert near(first[3], changed[3])
    assert not near(first, upscale(pipeline(), pictures, noise_level=300, **four))


def test_the_network_is_told_the_level_and_a_picture_with_that_much_noise(small, monkeypatch):
    """Of a mid-grey picture nothing but noise is left: its size is the coefficient that the reference has."""

    class Told(Exception):
        """What the network would have been told, instead of a picture."""

    def spy(self, rule, rows, x, keys, branches, *args, **options):
        raise Told(*branches)

    monkeypatch.setattr(sdjax.Pipeline, "sampling", spy)
    grey, white = np.full((64, 64, 3), 128, np.uint8), np.full((64, 64, 3), 255, np.uint8)
    for level, of_noise, of_image in ((20, 0.051949, 0.998650), (100, 0.169776, 0.985483), (349, 0.597911, 0.801562)):
        with pytest.raises(Told) as told:
            upscale(pipeline(), [grey, white, grey, white], noise_level=level, **FEW)
        unconditional, conditioning = told.value.args
        assert conditioning.label.tolist() == [level] * 4
        for name in ("label", "concat"):
            np.testing.assert_array_equal(getattr(conditioning, name), getattr(unconditional, name))
        concat = np.asarray(conditioning.concat)
        assert concat[0].std() == pytest.approx(of_noise, rel=0.03)  # 12288 numbers: 0.6 % standard error
        assert concat[1].mean() == pytest.approx(of_image, abs=0.02)
        assert np.abs(np.corrcoef(concat[0].ravel(), concat[2].ravel())[0, 1]) < 0.04  # each picture's own noise


@pytest.mark.slow
def test_devices_and_batches_do_not_change_pictures(small):
    pictures, seeds = [picture(i) for i in range(4)], [3, 1, 4, 1]
    four = upscale(pipeline(), pictures, "a cat", seed=seeds, **FEW)
    spread = upscale(pipeline(), pictures, "a cat", seed=seeds, **{**FEW, "devices": jax.devices()[:2]})
    assert near(four, spread)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"noise_level": 351}, "from 0 to 350; got 351"),
        ({"noise_level": -1}, "from 0 to 350"),
        ({"noise_level": 1.5}, "whole number"),
        ({"image": picture(0, 513, 64)}, "at most 512 x 512 pixels.*got 64 x 513"),
        ({"image": []}, "at least one picture"),
        ({"image": b"not a picture"}, "PNG, JPEG"),
        ({"prompt": ["a", "b", "c"], "image": [picture(), picture()]}, "one prompt, or one for each of the 2"),
        ({"seed": -1}, "a seed lies between"),
    ],
)
def test_bad_arguments_are_refused_with_a_sentence(arguments, message):
    with pytest.raises(ValueError, match=message):
        upscale(pipeline(), **{"image": picture(), **FEW, **arguments})


def test_a_model_of_another_kind_is_refused_and_this_one_by_other_tasks():
    with pytest.raises(ValueError, match=r"upscale needs a model .*this one \(tiny\) takes 4 channels"):
        upscale(models.pipeline(), picture(), **FEW)
    with pytest.raises(ValueError, match=r"this one \(tiny_upscaler\) takes 7 channels and a label.*upscaling"):
        sdjax.text_to_image(pipeline(), "a cat", **FEW)


def test_a_model_with_fewer_labels_takes_fewer_levels():
    few = dataclasses.replace(TINY, unet=dataclasses.replace(TINY.unet, num_classes=10))
    assert module.check_noise_level(few, 9) == 9
    with pytest.raises(ValueError, match="from 0 to 9"):
        module.check_noise_level(few, 20)
    with pytest.raises(ConfigError):
        dataclasses.replace(TINY, unet=dataclasses.replace(TINY.unet, in_channels=3))
