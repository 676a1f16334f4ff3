"""Depth to image: preparation, what a depth map does, sizes and batches, refusals."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from PIL import Image

import sdjax
from sdjax import pictures
from sdjax.config import DepthConfig
from sdjax.pictures import image
from sdjax.pipeline.model import Pipeline
from sdjax.prompts.tokenizer import Tokenizer
from sdjax.tasks import depth_to_image
from sdjax.tasks.text_to_image import text_to_image

import models
import reference
from checks import count_compilations, near
from models import picture

SMALL = DepthConfig(
    image_size=64, stem_width=8, stage_widths=(32, 64, 96), stage_depths=(1, 1, 1), norm_groups=4, width=32, layers=2,
    heads=4, taps=(0, 1), neck_widths=(24, 40), features=16,
)  # fmt: skip
TINY = dataclasses.replace(
    models.TINY, name="depth", unet=dataclasses.replace(models.TINY.unet, in_channels=5), depth=SMALL
)
FEW = {"num_steps": 3, "devices": jax.devices()[:1]}


@functools.cache
def pipeline():
    return Pipeline(config=TINY, params=models.random_params(TINY), tokenizer=Tokenizer())


@functools.cache
def without_network():
    params = {name: tree for name, tree in pipeline().params.items() if name != "depth"}
    return Pipeline(config=dataclasses.replace(TINY, depth=None), params=params, tokenizer=Tokenizer())


def ramp(height=128, width=128):
    return np.mgrid[:height, :width][1].astype(np.float32)


@pytest.mark.parametrize("case", [1, 2])
def test_preparation_equals_the_reference(case):
    arrays = reference.golden("dpt")
    given, want = (np.moveaxis(arrays[f"prepare_{case}_{name}"], 1, -1) for name in ("depth", "out"))
    got = depth_to_image.prepare_depth(given, want.shape[1:3])
    assert np.linalg.norm(got - want) < 2e-6 * np.linalg.norm(want)  # float32 rounding


@pytest.mark.parametrize("value", [0.0, 1.0, 1234.567, -3e-5])
@pytest.mark.parametrize("size", [(16, 16), (9, 31)])
def test_a_map_of_one_depth_survives(value, size):
    got = depth_to_image.prepare_depth(np.full((2, 128, 96, 1), value, np.float32), size)
    assert np.array_equal(got, np.full((2, *size, 1), -1))


def test_each_picture_has_its_own_range_after_resizing():
    maps = np.stack([ramp(), 1000 + 7 * ramp().T])[..., None]
    got = depth_to_image.prepare_depth(maps, (16, 16))
    assert got.min((1, 2, 3)).tolist() == [-1, -1]
    assert got.max((1, 2, 3)).tolist() == [1, 1]
    np.testing.assert_allclose(got[0], got[1].swapaxes(0, 1), atol=1e-5)


@pytest.mark.parametrize(
    ("size", "seen"),
    [((512, 512), (384, 384)), ((512, 768), (384, 576)), ((768, 512), (576, 384)), ((128, 2048), (32, 384)),
     ((64, 2048), (32, 384)), ((320, 384), (320, 384)), ((1080, 1920), (384, 672))],
)  # fmt: skip
def test_the_network_looks_at_midas_sizes(size, seen):
    # MiDaS's "minimal" rule: the side whose scale is nearer to 1 becomes 384, both round to multiples of 32
    assert depth_to_image.network_size(DepthConfig(), size) == seen


@pytest.mark.slow
def test_strength_one_keeps_nothing_but_depth():
    pipe, options = pipeline(), {"strength": 1, "seed": 4, **FEW}
    a = sdjax.depth_to_image(pipe, picture(128, 128, 0), "a cat", depth_map=ramp(), **options)
    b = sdjax.depth_to_image(pipe, picture(128, 128, 1), "a cat", depth_map=ramp(), **options)
    c = sdjax.depth_to_image(pipe, picture(128, 128, 0), "a cat", depth_map=ramp().T, **options)
    np.testing.assert_array_equal(a, b)
    assert (a != c).mean() > 0.1


@pytest.mark.slow
def test_no_strength_is_the_round_trip_and_more_leads_away():
    pipe, given = pipeline(), picture(128, 128)
    made = [
        sdjax.depth_to_image(pipe, given, "a cat", depth_map=ramp(), strength=s, seed=3, **FEW) for s in (0, 0.4, 0.9)
    ]
    wanted = sdjax.image_to_image(models.pipeline(), given, strength=0, seed=3, **FEW)  # the same autoencoder
    np.testing.assert_array_equal(made[0], wanted)
    assert np.abs(made[1] - made[0].astype(int)).mean() < np.abs(made[2] - made[0].astype(int)).mean()


def test_an_estimated_map_is_the_one_that_is_used(monkeypatch):
    pipe, given, options = pipeline(), picture(128, 128), {"seed": 1, **FEW}
    made = sdjax.depth_to_image(pipe, given, "a cat", **options)
    seen = depth_to_image._estimated(pipe, [given], sdjax.pipeline.placement.make_mesh(FEW["devices"]), "jit")[0]
    assert seen.shape == (64, 64, 1)
    monkeypatch.setattr(depth_to_image, "_estimated", lambda *args: [np.ones_like(seen)])
    assert not np.array_equal(made, sdjax.depth_to_image(pipe, given, "a cat", **options))
    monkeypatch.setattr(
        depth_to_image, "_estimated", lambda *args: [3 + 2 * seen]
    )  # only what is nearer than what matters
    again = sdjax.depth_to_image(pipe, given, "a cat", **options)
    assert near(made, again)


@pytest.mark.slow
def test_pictures_keep_their_sizes_and_do_not_touch_each_other():
    pipe, given = pipeline(), [picture(100, 120, 0), picture(65, 40, 2)]
    maps = [ramp(100, 120), ramp(65, 40)]
    made = sdjax.depth_to_image(pipe, given, "a cat", depth_map=maps, seed=7, **FEW)
    assert [m.shape for m in made] == [(100, 120, 3), (65, 40, 3)]
    alone = sdjax.depth_to_image(pipe, given[1], "a cat", depth_map=maps[1], seed=8, **FEW)[0]
    assert near(made[1], alone)  # sums of another order in a batch


@pytest.mark.slow
def test_pictures_of_several_sizes_are_seen_in_several_sizes():
    pipe, given = pipeline(), [picture(128, 128, 0), picture(128, 250, 1)]
    made = sdjax.depth_to_image(pipe, given, "a cat", seed=7, **FEW)
    assert [m.shape for m in made] == [(128, 128, 3), (128, 250, 3)]
    alone = sdjax.depth_to_image(pipe, given[1], "a cat", seed=8, **FEW)[0]
    np.testing.assert_array_equal(made[1], alone)


def test_estimated_depth_has_the_pictures_size_and_comes_back_from_a_file(tmp_path):
    pipe, given = pipeline(), picture(100, 120)
    (estimated,) = sdjax.estimate_depth(pipe, given, devices=FEW["devices"])
    assert estimated.shape == (100, 120)
    assert estimated.min() >= 0
    assert np.ptp(estimated) > 0
    grey = depth_to_image.to_grey(estimated)
    assert (grey.min(), grey.max()) == (0, 65535)
    image.save_png(tmp_path / "depth.png", grey)
    back = pictures.open_map(tmp_path / "depth.png").values
    np.testing.assert_allclose(back, (estimated - estimated.min()) / np.ptp(estimated), atol=1e-5)
    a = sdjax.depth_to_image(pipe, given, "a cat", depth_map=tmp_path / "depth.png", **FEW)
    b = sdjax.depth_to_image(pipe, given, "a cat", depth_map=[estimated], **FEW)
    assert near(a, b)  # 16 bits


def test_a_map_may_have_another_size_of_the_same_aspect():
    pipe, given = without_network(), picture(128, 128)
    a = sdjax.depth_to_image(pipe, given, "a cat", depth_map=ramp(), **FEW)
    b = sdjax.depth_to_image(pipe, given, "a cat", depth_map=Image.fromarray(ramp(64, 64)), **FEW)
    assert np.abs(a.astype(int) - b).mean() < 8  # a ramp, but for its ends
    depth_to_image.check_aspect((341, 512), (1000, 1500))
    depth_to_image.check_aspect((1000, 1500), (341, 512))


def test_guidance_steps_and_seeds_compile_nothing_new():
    pipe, options = without_network(), {"depth_map": ramp(), "devices": FEW["devices"]}
    sdjax.depth_to_image(pipe, picture(128, 128), "a cat", num_steps=10, strength=0.5, **options)
    again = {"num_steps": 7, "strength": 0.9, "seed": 8, "guidance_scale": 3.0}
    assert not count_compilations(lambda: sdjax.depth_to_image(pipe, picture(128, 128, 1), "a dog", **again, **options))


def test_what_cannot_be_is_refused():
    given, map_ = picture(128, 128), ramp()
    with pytest.raises(ValueError, match="needs a model that takes.*depth"):
        sdjax.depth_to_image(models.pipeline(), given, "a cat", depth_map=map_, **FEW)
    with pytest.raises(ValueError, match="for depth to image"):
        text_to_image(pipeline(), "a cat", **FEW)
    with pytest.raises(ValueError, match="no depth network; give depth_map"):
        sdjax.depth_to_image(without_network(), given, "a cat", **FEW)
    with pytest.raises(ValueError, match="no depth network; load one from another file with sdjax.load"):
        sdjax.estimate_depth(without_network(), given)
    with pytest.raises(ValueError, match="a map of 96 x 64 for a picture of 128 x 128"):
        sdjax.depth_to_image(pipeline(), given, "a cat", depth_map=ramp(64, 96), **FEW)
    with pytest.raises(ValueError, match="one depth map, or one for each of the 1 pictures; got 2"):
        sdjax.depth_to_image(pipeline(), given, "a cat", depth_map=[map_, map_], **FEW)
    with pytest.raises(ValueError, match="finite"):
        sdjax.depth_to_image(pipeline(), given, "a cat", depth_map=np.full((128, 128), np.nan), **FEW)
    with pytest.raises(ValueError, match="strength is a number from 0"):
        sdjax.depth_to_image(pipeline(), given, "a cat", depth_map=map_, strength=1.1, **FEW)
    with pytest.raises(ValueError, match="at most 2048 x 2048 pixels; got 2100 x 64"):
        sdjax.depth_to_image(pipeline(), np.zeros((64, 2100, 3), np.uint8), "a cat", **FEW)
