"""What is added to pictures, in every task: controls, image prompts, regions and adapters."""

import dataclasses

import jax
import numpy as np
import pytest

import sdjax
from sdjax import convert
from sdjax.adapters import LowRank
from sdjax.convert.names import tables
from sdjax.convert.parts.controlnet import LoadedControlNet
from sdjax.convert.parts.ip_adapter import ip_adapter_table
from sdjax.nn.controlnet import of_unet
from sdjax.nn.ip_adapter import IPAdapterConfig, attention_paths
from sdjax.nn.networks import NETWORKS
from sdjax.tasks.adapter_spans import timesteps_of as adapter_timesteps
from sdjax.tasks.adapters import AdapterUse
from sdjax.tasks.control_arrays import timesteps_of
from sdjax.tasks.controls import ControlUse
from sdjax.tasks.resolve import resolve
from sdjax.tasks.two_pass import second_request

import models
import reference

ONE = {"devices": jax.devices()[:1]}
EDIT = dataclasses.replace(models.TINY, name="edit", unet=dataclasses.replace(models.TINY.unet, in_channels=8))
DEPTH = dataclasses.replace(models.TINY, name="depth", unet=dataclasses.replace(models.TINY.unet, in_channels=5))


def net():
    config = of_unet(models.TINY.unet)
    params = models.fill_tree(NETWORKS["controlnet"].shapes(config))
    params["controlnet_cond_embedding"]["conv_out"]["kernel"] *= 1e-9  # random layers before it make hints this large
    return LoadedControlNet(config, params, "net")


def face():
    """Returns an adapter of faces that brings a LoRA."""
    config = IPAdapterConfig("face", 8, 32, tuple(width for _, width in attention_paths(models.TINY.unet)), 3)
    tensors = {entry.name: reference.fill(entry.name, entry.shape) for entry in ip_adapter_table(config).entries}
    leaf = next(one for one in tables.part_parameters("unet", models.TINY.unet) if one.path.endswith("to_q/kernel"))
    lora = {leaf.path: LowRank(np.ones((leaf.shape[0], 1), "f"), np.ones((1, leaf.shape[1]), "f"))}
    return dataclasses.replace(convert.load_ip_adapter(tensors, models.TINY), lora=lora)


def test_the_second_pass_has_what_is_added_to_the_first():
    pipe = models.pipeline()
    added = {
        "image_prompts": [sdjax.ImagePrompt(face(), embedding=np.ones(8, np.float32))],
        "controls": [ControlUse(net(), models.picture())],
        "adapters": [AdapterUse({})],
        "regions": ["0,0,0.5,1=a rocket"],
    }
    (first,) = resolve(pipe, [sdjax.Request("a cat", height=64, width=64, **added)])
    (second,) = resolve(pipe, [second_request(pipe.config, first, 1.5, {})])
    for name in added:
        assert len(getattr(first, name)) == len(getattr(second, name)) == 1 + (name == "adapters")
    np.testing.assert_array_equal(second.regions[0].mask, np.arange(96) < np.full((96, 1), 48))


@pytest.mark.parametrize("of", [timesteps_of, adapter_timesteps])
def test_a_span_has_the_same_timesteps_in_an_inversion(of):
    timesteps = np.array([900.0, 700.0, 500.0, 300.0, 100.0])
    for span in (0, 1), (0.2, 0.8), (0.4, 1), (0, 0.6):
        assert of(span, timesteps[::-1]) == of(span, timesteps)


def tasks():
    """Yields the name of a task, and a function of controls that makes pictures by it."""
    few, picture = {"num_steps": 2, **ONE}, models.picture()
    guided = {"guidance_scale": 3.0, **few}
    box = [(16, 16, 24, 24)]
    yield "edit", lambda **c: sdjax.edit(models.pipeline(EDIT), picture, "winter", sampler="euler", **c, **few)
    yield "detail", lambda **c: sdjax.detail(models.pipeline(), picture, "a", boxes=box, strength=1.0, **c, **few)
    yield "invert", lambda **c: sdjax.invert(models.pipeline(), picture, "a", **c, **few)
    yield (
        "depth",
        lambda **c: sdjax.depth_to_image(
            models.pipeline(DEPTH), models.picture(128, 128), "a", depth_map=np.eye(128), strength=1.0, **c, **few
        ),
    )
    yield (
        "two passes",
        lambda **c: sdjax.two_pass(models.pipeline(), "a", enlarge=1.5, height=64, width=64, **c, **guided),
    )


@pytest.mark.slow  # compiles networks
@pytest.mark.parametrize(("name", "make"), list(tasks()))
def test_a_control_steers_every_task(name, make):
    hint = models.picture(seed=3)
    off, on = (np.asarray(make(controls=[ControlUse(net(), hint, weight)]), np.float32) for weight in (0.0, 5.0))
    assert off.shape == on.shape
    assert np.abs(on - off).max() > 0.05
    if name in ("edit", "invert", "detail"):  # without a hint it is the picture
        own = np.asarray(make(controls=[ControlUse(net(), None, 5.0)]), np.float32)
        named = np.asarray(make(controls=[ControlUse(net(), models.picture(), 5.0)]), np.float32)
        np.testing.assert_allclose(own, named, atol=1.001 if name != "invert" else 1e-3)


@pytest.mark.slow  # compiles networks
def test_gradients_pass_through_controls():
    made = sdjax.differentiable(
        models.pipeline(), "a cat", controls=[ControlUse(net(), models.picture(), 2.0)], num_steps=2, height=64,
        width=64, guidance_scale=3.0,
    )  # fmt: skip
    want = sdjax.text_to_image(
        models.pipeline(), "a cat", controls=[ControlUse(net(), models.picture(), 2.0)], num_steps=2, height=64,
        width=64, guidance_scale=3.0, output="latent", **ONE,
    )  # fmt: skip
    np.testing.assert_allclose(made.latent(), want, atol=1e-3)
    gradient = jax.grad(lambda noise: made.replace(noise=noise).latent().sum())(made.noise)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 0


def test_controls_of_another_network_are_refused_by_the_upscaler():
    upscaler = dataclasses.replace(
        models.TINY, name="up", unet=dataclasses.replace(models.TINY.unet, in_channels=7, num_classes=1000),
        vae=dataclasses.replace(models.TINY.vae, channels=(32, 32, 32)),
    )  # fmt: skip
    with pytest.raises(ValueError, match="ControlNet net is for another model"):
        sdjax.upscale(models.pipeline(upscaler), models.picture(), "a", controls=[ControlUse(net(), models.picture())])
