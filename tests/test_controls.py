"""ControlNets and T2I-Adapters of pictures: arguments, batches, tasks and the command line's texts."""

import dataclasses
import functools

import numpy as np
import pytest

import sdjax
from sdjax.adapters.control import scales
from sdjax.convert.parts.controlnet import LoadedControlNet
from sdjax.convert.parts.t2i import LoadedT2I
from sdjax.nn.controlnet import of_unet
from sdjax.nn.networks import NETWORKS
from sdjax.nn.t2i import T2IConfig
from sdjax.tasks.control_arrays import fitted, hint_of, steps_of, timesteps_of
from sdjax.tasks.controls import ControlUse, read_text

import models

FAST = {"num_steps": 2, "height": 64, "width": 64, "guidance_scale": 3.0}
STRONG = 5.0


@functools.cache
def net(pooled=False):
    config = of_unet(models.TINY.unet, pooled=pooled)
    params = models.fill_tree(NETWORKS["controlnet"].shapes(config))
    params["controlnet_cond_embedding"]["conv_out"]["kernel"] *= 1e-9  # random layers before it make hints this large
    return LoadedControlNet(config, params, "net")


@functools.cache
def t2i():
    config = T2IConfig(channels=(32,), num_res_blocks=1)
    return LoadedT2I(config, models.fill_tree(NETWORKS["t2i"].shapes(config)), "adapter")


def made(controls, prompt="a cat", **options):
    return sdjax.text_to_image(models.pipeline(), prompt, **{**FAST, "controls": controls, **options})


def hint(seed=0):
    return models.picture(64, 64, seed)


def three(*rows):
    """Returns three latents of one prompt and seed. A row is the ControlNet's arguments and the T2I-Adapter's."""
    controls = [[ControlUse(net(), hint(0), **one), ControlUse(t2i(), hint(1), **other)] for one, other in rows]
    return made(controls, prompt=["a cat"] * 3, seed=[0] * 3, output="latent")


OFF = {"weight": 0.0}
ON = {"weight": STRONG}


def test_pictures_of_one_batch_have_weights_steps_and_masks_of_their_own():
    off, on, both = three((OFF, OFF), (ON, OFF), (ON, ON))
    assert np.abs(on - off).max() > 0.1
    assert np.abs(both - on).max() > 0.1
    white = np.full((64, 64), 255, np.uint8)
    hidden, never, masked = three(
        ({**ON, "mask": 0 * white}, OFF), ({**ON, "start": 0.3, "end": 0.4}, OFF), ({**ON, "mask": white}, ON)
    )
    np.testing.assert_array_equal(hidden, off)
    np.testing.assert_array_equal(never, off)
    np.testing.assert_array_equal(masked, both)
    first, modes, last = three(({**ON, "end": 0.5}, OFF), ({**ON, "mode": "control"}, OFF), ({**ON, "start": 0.5}, OFF))
    for one, other in (first, last), (first, off), (last, off), (modes, on), (modes, off):
        assert np.abs(one - other).max() > 0.01


@pytest.mark.slow
def test_pictures_of_a_batch_are_the_same_alone():
    uses = [
        ControlUse(net(), hint(0), STRONG),
        ControlUse(net(), hint(1), STRONG / 2, start=0.5, mode="control"),
        ControlUse(net(), hint(2), 0.0),
    ]
    prompts = ["a cat", "a dog", "a cow"]
    together = made([[use] for use in uses], prompt=prompts).astype(int)
    plain = made([], prompt=prompts).astype(int)
    for i, use in enumerate(uses):
        alone = made([use], prompt=prompts[i], seed=i)[0].astype(int)
        assert abs(together[i] - alone).max() <= 1
        assert (abs(together[i] - plain[i]).max() > 2) == (i < 2)


@pytest.mark.slow
def test_a_pooled_net_counts_in_the_branch_with_the_prompt_alone():
    pooled = made([ControlUse(net(pooled=True), hint(), STRONG)])
    assert np.abs(pooled.astype(int) - made([])).max() > 5
    # Without guidance there is no other branch, and the modes with equal weights are equal
    conditional = made([ControlUse(net(pooled=True), hint(), STRONG)], guidance_scale=1.0)
    np.testing.assert_array_equal(
        conditional, made([ControlUse(net(pooled=True), hint(), STRONG, mode="balanced")], guidance_scale=1.0)
    )


@pytest.mark.parametrize(
    ("span", "count", "steps"),
    [((0, 1), 5, (0, 5)), ((0.3, 0.31), 10, (0, 0)), ((0, 0.33), 20, (0, 6)), ((0.5, 1), 3, (2, 3))],
)
def test_a_control_works_at_the_steps_that_lie_in_its_span_whole(span, count, steps):
    assert steps_of(span, count) == steps


def test_timesteps_choose_the_same_steps():
    timesteps = np.array([900.0, 700.0, 500.0, 300.0, 100.0])
    for span in (0, 1), (0.2, 0.8), (0.4, 1), (0.45, 0.5):
        highest, lowest = timesteps_of(span, timesteps)
        first, stop = steps_of(span, 5)
        assert [first <= i < stop for i in range(5)] == [highest >= t > lowest for t in timesteps]


def test_weights_of_the_modes():
    np.testing.assert_allclose(scales("control", 13)[[0, 6, 12]], [0.825**12, 0.825**6, 1], rtol=1e-6)
    np.testing.assert_allclose(scales("guess", 13)[[0, 6, 12]], [0.1, 10**-0.5, 1], rtol=1e-6)
    assert (scales("balanced", 4) == 1).all()


def test_a_text_names_a_control_with_everything():
    use = read_text("nets/canny.safetensors:0.8=canny:a,b.png,end=0.7,mode=prompt,low_threshold=50,mask=m.png")
    assert (use.network, use.weight, use.hint) == ("nets/canny.safetensors", 0.8, "a,b.png")
    assert (use.preprocess, use.options, use.end, use.mode) == ("canny", {"low_threshold": 50}, 0.7, "prompt")
    assert use.mask == "m.png"
    assert read_text("tile.pth").hint is None
    assert read_text("tile.pth=tile_resample:").hint is None
    assert read_text("net.pth=C:photo.png").hint == "C:photo.png"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("net.pth=", "missing"),
        ("net.pth:1:2=a.png", "FILE"),
        ("=a.png", "FILE"),
        ("net.pth=a.png,end=0.7,end=0.8", "twice"),
        ("net.pth=a.png,end=nan", "finite|0"),
        ("net.pth=a.png,ennd=0.5", "ennd"),
        ("net.pth=a.png,start=0.9,end=0.5", "after"),
        ("net.pth=a.png,mode=strong", "balanced"),
        ("net.pth=a.png,resize=tile", "crop"),
        ("net.pth=canny:a.png,low_threshold=-5", "low_threshold"),
        ("net.pth=a.png,hidden=m.png", "inpaint"),
        ("net.pth:0.5=a.png,weight=0.5", "twice"),
    ],
)
def test_wrong_texts_are_refused_in_a_sentence(text, words):
    with pytest.raises(ValueError, match=words):
        read_text(text)


def test_hints_are_brought_to_the_pictures_size():
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 255
    assert (fitted(wide, 20, 20, "crop", "nearest") == 255).all()
    padded = fitted(wide, 30, 30, "pad", "nearest")
    assert (padded[10:20, 10:20] == 255).all()
    assert not padded[:10].any()
    assert fitted(wide, 7, 9, "stretch").shape == (7, 9, 3)
    assert fitted(wide, 7, 9, "crop").shape == fitted(wide, 7, 9, "pad").shape == (7, 9, 3)


def test_a_hint_is_made_by_a_preprocessor_and_by_inpainting():
    picture = hint()
    use = ControlUse(net(), picture, preprocess="invert")
    np.testing.assert_allclose(hint_of(use, 64, 64), 1 - picture / np.float32(255), atol=1e-6)
    mask = np.zeros((64, 64), np.uint8)
    mask[:8] = 255
    use = ControlUse(net(), picture, preprocess="inpaint", hidden=mask)
    assert (hint_of(use, 64, 64)[:8] == -1).all()
    np.testing.assert_allclose(hint_of(use, 64, 64)[8:], picture[8:] / np.float32(255))
    with pytest.raises(ValueError, match="hidden"):
        hint_of(dataclasses.replace(use, hidden=None), 64, 64)


@pytest.mark.slow
def test_a_control_without_a_hint_takes_the_tasks_picture():
    picture = hint(3)
    options = {"num_steps": 2, "strength": 1.0, "guidance_scale": 1.0}
    own = sdjax.image_to_image(models.pipeline(), picture, "a", controls=[ControlUse(net(), weight=STRONG)], **options)
    named = sdjax.image_to_image(
        models.pipeline(), picture, "a", controls=[ControlUse(net(), picture, STRONG)], **options
    )
    np.testing.assert_array_equal(own, named)
    with pytest.raises(ValueError, match="has no hint"):
        made([ControlUse(net())])


@pytest.mark.slow
def test_windows_see_their_own_part_of_the_hint():
    options = {"height": 64, "width": 128, "window": 64, "window_overlap": 0, "guidance_scale": 1.0, "output": "latent"}
    left, right = hint(0), hint(1)
    whole = made([ControlUse(net(), np.concatenate([left, right], 1), STRONG)], **options)
    other = made([ControlUse(net(), np.concatenate([left, hint(2)], 1), STRONG)], **options)
    np.testing.assert_allclose(whole[:, :, :8], other[:, :, :8], atol=1e-5)
    assert np.abs(whole[:, :, 8:] - other[:, :, 8:]).max() > 0.1


def test_networks_of_another_model_are_refused():
    config = of_unet(dataclasses.replace(models.TINY.unet, context_dim=48))
    with pytest.raises(ValueError, match="another model"):
        made([ControlUse(LoadedControlNet(config, {}, "other"), hint())])
    with pytest.raises(ValueError, match="ControlUse"):
        made([3])
