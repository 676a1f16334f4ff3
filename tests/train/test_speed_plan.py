"""Predicted speed of training: published figures come out, names of slices count devices, text says what is missing."""

import jax
import pytest
from models_to_train import MODEL

from sdjax.configs import finetune
from sdjax.description import build
from sdjax.nn import UNet
from sdjax.train.config import TrainConfig
from sdjax.train.planning.accelerators import ACCELERATORS, accelerator_named
from sdjax.train.planning.flops import count
from sdjax.train.planning.report import plan_of
from sdjax.train.planning.speed import TO_TARGET, SpeedPlan, pictures_to_target

PICTURE = 2.344e12  # operations of a picture of Stable Diffusion 2 at 512 pixels, without the padding of convolutions


@pytest.mark.parametrize(("name", "pictures"), [("h100", 137), ("h200", 150), ("v5p", 86.6)])
def test_published_speeds_come_out_again(name, pictures):
    found = ACCELERATORS[name]
    speed = SpeedPlan(PICTURE * 256, 256, 1, found.peak, found.mfu)
    assert speed.pictures == pytest.approx(pictures, rel=0.01)


@pytest.mark.slow
def test_a_picture_of_stable_diffusion_2_has_the_operations_that_the_speeds_are_for():
    from sdjax import configs

    config = configs.get("sd2_base").unet
    shape = lambda *sides: jax.ShapeDtypeStruct(sides, "float32")  # noqa: E731
    args = shape(1, 64, 64, 4), shape(1), shape(1, 77, 1024)
    params = jax.eval_shape(UNet(config).init, jax.random.key(0), *args)
    loss = lambda params, *args: (UNet(config).apply(params, *args).sum(), None)  # noqa: E731
    assert count(loss, params, *args).model == pytest.approx(PICTURE, rel=0.01)


def test_all_accelerators_have_a_peak():
    assert all(one.peak > 1e14 for one in ACCELERATORS.values())


@pytest.mark.parametrize(
    ("name", "devices"), [("v5p-16", 8), ("v5p-1024", 512), ("v4-8", 4), ("v6e-8", 8), ("h100", None)]
)
def test_a_slice_has_as_many_devices_as_its_name_says(name, devices):
    assert accelerator_named(name)[1] == devices


@pytest.mark.parametrize("name", ["v5p-0", "v5p-15", "v5p-x", "h100-8", "", "tpu", "v5p-9999999999"])
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match=r"got '"):
        accelerator_named(name)


def test_pictures_to_the_target_are_those_of_the_reference_runs():
    assert {size: pictures_to_target(size) for size in TO_TARGET} == TO_TARGET
    assert pictures_to_target(1536) == (3_072_000, 3_840_000)  # half way
    assert pictures_to_target(128) is pictures_to_target(4096) is None


def test_minutes_follow_from_pictures_a_second():
    speed = SpeedPlan(flops=1e15, batch_size=1024, devices=8, peak=1e15, mfu=0.5)
    assert speed.seconds == pytest.approx(0.25)
    assert speed.pictures == pytest.approx(4096)
    lines = speed.lines(1000, target=True)
    assert "4,096.0 pictures a second (512.0 on each device), 0.250 seconds a step" in lines[0]
    assert "1,000 steps of 1024 take 0.07 hours, 0.6 device hours" in lines[1]
    assert "2.6 to 3.1 million pictures: 10.4 to 12.5 minutes" in lines[2]


@pytest.mark.slow
def test_a_plan_for_accelerators_says_memory_and_time():
    config = finetune.get_config().to_dict()
    config["model"] |= {"path": None, "scratch": MODEL.to_dict()}
    config["batch_size"] = 16
    text = plan_of(build(TrainConfig, config), accelerator="v5p-16")
    assert "on 8 devices" in text
    assert "of the 95 GiB of one TPU v5p" in text
    assert "at 44.2% of the peak of 459 TFLOP/s" in text
    assert "give --mfu" in plan_of(build(TrainConfig, config), 1, accelerator="a100")
    with pytest.raises(ValueError, match="has 8 devices"):
        plan_of(build(TrainConfig, config), 4, accelerator="v5p-16")
