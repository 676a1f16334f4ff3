"""What clips and animations add to the UNet: LoRA, ControlNets, image prompts, pictures; clips on several devices."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

import sdjax
from sdjax import MotionUse, convert
from sdjax.adapters import LowRank
from sdjax.config import ScheduleConfig, VisionConfig
from sdjax.convert.adapters.write import write_adapter
from sdjax.convert.names import tables
from sdjax.convert.parts.controlnet import LoadedControlNet
from sdjax.convert.parts.ip_adapter import ip_adapter_table
from sdjax.nn.controlnet import of_unet
from sdjax.nn.ip_adapter import IPAdapterConfig, attention_paths
from sdjax.nn.networks import NETWORKS
from sdjax.tasks.adapters import AdapterUse
from sdjax.tasks.controls import ControlUse
from sdjax.tasks.keyframe_uses import shares_at, with_uses
from sdjax.tasks.make_batch import make_batch
from sdjax.tasks.resolve import resolve
from sdjax.tasks.results import OutOfMemoryError, advice

import models
import motion_files
import reference
from checks import near

FEW = {"num_steps": 2, "height": 64, "width": 64, "guidance_scale": 3.0}
VISION = VisionConfig(image_size=28, patch_size=14, width=32, layers=2, heads=2, projection=24)


def still():
    """Returns motion modules that change nothing."""
    return convert.LoadedMotion(motion_files.V3, jax.tree.map(np.zeros_like, motion_files.modules().params))


def lora(seed=1, rank=2):
    """Returns random changes of the UNet's and the text encoder's queries and values that show in a picture."""
    rng, adapter = np.random.default_rng(seed), {}
    for part in "unet", "text":
        for leaf in tables.part_parameters(part, getattr(models.TINY, part)):
            if leaf.path.endswith(("to_q/kernel", "to_v/kernel", "q_proj/kernel", "v_proj/kernel")):
                c, d = leaf.shape
                draw = [rng.normal(size=shape).astype("f") for shape in ((c, rank), (rank, d))]
                adapter[leaf.path] = LowRank(2 * draw[0] / c**0.5, draw[1] / rank**0.5)
    return adapter


@functools.cache
def net():
    config = of_unet(models.TINY.unet)
    params = models.fill_tree(NETWORKS["controlnet"].shapes(config))
    params["controlnet_cond_embedding"]["conv_out"]["kernel"] *= 1e-9
    return LoadedControlNet(config, params, "net")


def control(seed):
    return ControlUse(net(), models.picture(64, 64, seed), 5.0)


def image_prompt():
    config = IPAdapterConfig("linear", 24, 32, tuple(width for _, width in attention_paths(models.TINY.unet)), 4)
    tensors = {entry.name: reference.fill(entry.name, entry.shape) for entry in ip_adapter_table(config).entries}
    encoder = VISION, models.fill_tree(NETWORKS["vision"].shapes(VISION))
    return sdjax.ImagePrompt(
        convert.load_ip_adapter(tensors, models.TINY), models.picture(60, 80), 2.0, encoder=encoder
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("loras")
    for seed, name in enumerate(("one", "two"), 1):
        write_adapter(place / f"{name}.safetensors", lora(seed), models.TINY)
    return place


def test_frames_between_keyframes_have_the_loras_of_both_in_shares(folder):
    one, two = (AdapterUse(lora(seed), name=str(seed)) for seed in (1, 2))
    pipe = models.pipeline()
    keyframes = resolve(pipe, [sdjax.Request(adapters=uses) for uses in ((one,), (one, two), ())])
    batch = make_batch(pipe, ["a"] * 5, {"devices": jax.devices()[:1]})
    made = with_uses(batch, keyframes, shares_at(3, np.linspace(0, 2, 5)))
    weights = [[use.strength.unet for use in request.adapters] for request in made.requests]
    assert weights == [[1, 0], [1, 0.5], [1, 1], [0.5, 0.5], [0, 0]]


@pytest.mark.slow  # compiles a network with adapters
def test_tags_of_loras_in_keyframes_reach_the_network(folder):
    pipe, options = models.pipeline(), {"lora_dir": str(folder), "devices": jax.devices()[:1], **FEW}
    prompts = ["a cat <lora:one:1.5>", "a dog"]
    frames = sdjax.animate(pipe, prompts, seeds=[3, 3], frames=3, batch=2, **options)
    pictures = sdjax.text_to_image(pipe, prompts, seed=[3, 3], **options)
    without = sdjax.text_to_image(pipe, ["a cat <lora:one:0>", "a dog"], seed=[3, 3], **options)
    assert near(frames[::2], pictures)
    assert not near(frames[0], without[0])
    assert near(frames[2], without[1])


@pytest.mark.slow
def test_a_still_clip_is_the_batch_of_pictures_with_all_that_is_added(folder):
    pipe, given = models.pipeline(), [models.picture(seed=i) for i in range(4)]
    controls = [[control(i)] for i in range(4)]
    options = {"lora_dir": str(folder), "controls": controls, "image_prompts": [image_prompt()], "strength": 1.0, **FEW}
    text = "a cat <lora:one:1.5>"
    linear = dataclasses.replace(pipe, config=dataclasses.replace(pipe.config, schedule=ScheduleConfig("linear")))
    frames = sdjax.animate(pipe, text, seeds=3, motion=still(), image=given, frames=4, **options)
    options = {name: value for name, value in options.items() if name not in ("height", "width")}
    pictures = sdjax.image_to_image(linear, given, text, seed=3, devices=jax.devices()[:1], **options)
    assert near(frames, pictures)
    for left_out in "controls", "image_prompts", "lora_dir":
        rest = {name: value for name, value in options.items() if name != left_out}
        other = sdjax.animate(pipe, text.replace(" <lora:one:1.5>", "") if left_out == "lora_dir" else text, seeds=3,
                              motion=still(), image=given, frames=4, **rest)  # fmt: skip
        assert not near(other, frames), left_out


@pytest.mark.slow
@pytest.mark.parametrize("window", [16, 4])  # one window of all frames, and several
def test_a_clip_is_the_same_on_several_devices(window):
    motion = MotionUse(motion_files.modules(), frame_window=window, frame_overlap=2)
    pipe, options = models.pipeline(), {"motion": motion, "frames": 8, **FEW}
    one, four = (
        sdjax.animate(pipe, "a cat", seeds=3, devices=jax.devices()[:count], controls=[control(0)], **options)
        for count in (1, 4)
    )
    assert near(one, four)


def test_the_devices_of_a_clip_divide_its_frames():
    motion = MotionUse(motion_files.modules(), frame_window=4, frame_overlap=2)
    pipe, options = models.pipeline(), {"motion": motion, "devices": jax.devices(), **FEW}
    with pytest.warns(sdjax.checks.notes.Note, match="2 of the 8 devices"):
        session = sdjax.animate.session(pipe, "a cat", frames=6, **options)
    assert session._parts[0].how.mesh.size == 2
    with pytest.raises(ValueError, match="pmap divides"):
        sdjax.animate(pipe, "a cat", frames=4, parallel="pmap", **options)


def test_a_clip_that_is_too_large_is_told_of_smaller_windows():
    error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
    sentence = "try a smaller frame_window than 16, or dtype bfloat16$"
    with pytest.raises(OutOfMemoryError, match=sentence), advice(512, 512, 64, "float32", window=16):
        raise error
