"""Relighting: networks that take the latents of a foreground and of a background."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
import pytest

import sdjax
from sdjax import configs
from sdjax.convert.describe.detection import detect
from sdjax.convert.names.tables import tensor_shapes
from sdjax.pipeline.model import Pipeline
from sdjax.purpose import kind_of
from sdjax.samplers import SAMPLERS, make_start
from sdjax.schedule import NoiseSchedule
from sdjax.tasks.relight import foregrounds, gradient

import models

FIRST = "model.diffusion_model.input_blocks.0.0.weight"
FEW = {"num_steps": 2, "sampler": "euler"}


@functools.cache
def wide(beside: str) -> Pipeline:
    """Returns a tiny pipeline; models that take as many channels share its weights and programs."""
    more = 4 if beside == "foreground" else 8
    unet = dataclasses.replace(models.TINY.unet, in_channels=4 + more)
    config = dataclasses.replace(models.TINY, name="relight", unet=unet, beside=None)
    pipe = models.pipeline(config)
    return dataclasses.replace(pipe, config=dataclasses.replace(config, beside=beside))


def signed(pixels: np.ndarray) -> np.ndarray:
    return pixels.astype(np.float32) / 127 - 1


def test_what_is_not_foreground_is_grey_by_its_opacity():
    picture, alpha = models.picture(), np.zeros((64, 64), np.uint8)
    alpha[:, 16:32], alpha[:, 32:] = 128, 255
    formula = 127 + (picture - 127.0) * (alpha / 255)[..., None]
    for got in foregrounds(np.dstack([picture, alpha])) + foregrounds(picture, alpha):
        assert np.abs(got - formula).max() <= 0.51  # rounded to levels
        assert (got[:, :16] == 127).all()
        np.testing.assert_array_equal(got[:, 32:], picture[:, 32:])


@pytest.mark.parametrize("side", ["left", "right", "top", "bottom"])
def test_a_gradient_falls_from_its_side(side):
    line = np.linspace(255, 0, 64 if side in ("left", "right") else 128).astype(np.uint8)
    got = gradient(side, 128, 64, (255, 0))
    turned = {"left": got[5], "right": got[5][::-1], "top": got[:, 5], "bottom": got[::-1, 5]}[side]
    np.testing.assert_array_equal(turned, np.repeat(line[:, None], 3, 1))


@pytest.mark.parametrize(("steps", "strength", "made", "total"), [(25, 0.9, 25, 28), (20, 0.5, 20, 40)])
def test_a_strength_makes_all_steps_as_the_demo(steps, strength, made, total):
    schedule, sampler = NoiseSchedule(), SAMPLERS["euler"]()
    start = make_start(sampler, schedule, steps, strength, counting="ic_light")
    assert len(start.rows.index) == made
    np.testing.assert_array_equal(start.rows.sigma, sampler.steps(schedule, total, skip=total - made).sigma)
    assert start.of_x0 == 1


def test_the_network_takes_scaled_latents_of_foreground_and_background():
    pipe, front, behind = wide("foreground+background"), models.picture(), models.picture(seed=5)
    given = dataclasses.replace(pipe, config=dataclasses.replace(pipe.config, beside="given"))
    latents = [np.asarray(pipe.encode_image(jnp.asarray(signed(one)[None]))) for one in (front, behind)]
    want = sdjax.text_to_image(given, "cat", concat=np.concatenate(latents, -1)[0], guidance_scale=3, **FEW)
    got = sdjax.relight(pipe, front, "cat", backdrop=behind, guidance_scale=3, **FEW)
    np.testing.assert_array_equal(got, want)
    other = sdjax.relight(pipe, behind, "cat", backdrop=front, guidance_scale=3, **FEW)
    assert (np.asarray(other) != got).any()


@pytest.mark.slow  # compiles networks of two sizes
def test_light_and_second_pass_of_pictures_that_differ():
    pipe = wide("foreground")
    options = {"light": ["none", "left"], "enlarge": 1.5, "guidance_scale": 2, **FEW}
    both = sdjax.relight(pipe, models.picture(128, 128), ["cat", "cat"], seed=[3, 3], **options)
    assert both.shape == (2, 192, 192, 3)
    for i, light in enumerate(options["light"]):
        alone = sdjax.relight(pipe, models.picture(128, 128), "cat", seed=3, **{**options, "light": light})
        assert np.abs(both[i].astype(int) - alone[0]).max() <= 2  # sums in another order
    assert (both[0] != both[1]).any()


def test_whole_models_are_known_by_their_channels():
    shapes = tensor_shapes(configs.get("sd1"), "ldm")
    kinds = {12: ("sd1_relight", "relighting"), 6: ("sd1_wide", "given"), 8: ("sd1_edit", "edit")}
    for channels, (name, kind) in kinds.items():
        found = detect({**shapes, FIRST: (320, channels, 3, 3)})
        assert (found.name, kind_of(found), found.unet.in_channels) == (name, kind, channels)


@pytest.mark.parametrize(
    ("beside", "options", "message"),
    [("foreground", {"light": "up"}, "light is one of none, left"),
     ("foreground", {"backdrop": "left"}, "backdrop has no effect"),
     ("foreground+background", {}, "give a backdrop, a picture or one of grey"),
     ("foreground+background", {"backdrop": "left", "light": "left"}, "light has no effect"),
     ("foreground", {"enlarge": 0.5}, "enlarge"),
     ("foreground", {"light": ["left", "top", "none"]}, "give one light, or one for each"),
     ("foreground", {"mask": np.zeros((8, 8), bool)}, "a mask must have its picture's size"),
     ("foreground", {"concat": np.zeros((8, 8, 4))}, "concat has no effect")],
)  # fmt: skip
def test_wrong_lights_are_refused(beside, options, message):
    with pytest.raises(ValueError, match=message):
        sdjax.relight(wide(beside), models.picture(), "a", **FEW, **options)


def test_channels_that_no_task_makes_are_given():
    pipe = wide("foreground")
    given = dataclasses.replace(pipe, config=dataclasses.replace(pipe.config, beside="given"))
    with pytest.raises(ValueError, match=r"it is one for channels that you give \(sdjax.text_to_image with concat\)"):
        sdjax.text_to_image(given, "a", **FEW)
    with pytest.raises(ValueError, match=r"concat must have the shape \[8, 8, 4\]"):
        sdjax.text_to_image(given, "a", concat=np.zeros((8, 8, 3)), **FEW)
    with pytest.raises(ValueError, match="takes no channels beside the latent"):
        sdjax.text_to_image(models.pipeline(), "a", concat=np.zeros((8, 8, 4)), **FEW)
    with pytest.raises(ValueError, match="relight needs a model that takes 8 or 12 channels"):
        sdjax.relight(given, models.picture(), "a")
    with pytest.raises(sdjax.ConfigError, match="does not fit a UNet with 4 channels"):
        dataclasses.replace(pipe.config, beside="foreground+background")
