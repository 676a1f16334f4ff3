"""Names and shapes: the tables against the released files' own lists."""

import gzip
import json

import numpy as np
import pytest

from sdjax import configs, convert
from sdjax.convert import CheckpointError
from sdjax.convert.names import axes, naming

import reference

FILES = {
    "sd-v1-4": "sd1",
    "sd-v1-4-full-ema": "sd1",
    "sd-v1-5-inpainting": "sd1_inpaint",
    "768-v-ema": "sd2_v",
    "512-inpainting-ema": "sd2_inpaint",
    "512-depth-ema.no-midas": "sd2_depth",
    "x4-upscaler-ema": "x4_upscaler",
    "sd21-unclip-h.no-visual": "sd2_unclip_h",
    "laion400m-text2img-large": "laion400m",
}


def manifest(name):
    """Returns {tensor: shape} of a released file."""
    tables = json.loads(gzip.decompress((reference.GOLDEN / "manifests.json.gz").read_bytes()))
    return {tensor: tuple(shape) for tensor, (shape, _) in tables[name].items()}


def depth_network():
    """Returns {tensor: shape} of the depth network inside 512-depth-ema.ckpt, under the names that it has there."""
    table = json.loads(gzip.decompress((reference.GOLDEN / "depth_manifest.json.gz").read_bytes()))
    return {tensor: tuple(shape) for tensor, (shape, _) in table.items()}


@pytest.mark.few(4)
@pytest.mark.parametrize("name", FILES)
def test_released_files_are_recognised_and_counted(name):
    assert tuple(convert.parameter_counts(manifest(name)).values()) == reference.RELEASED[FILES[name]]


@pytest.mark.few(3)
@pytest.mark.parametrize("name", FILES)
def test_our_own_names_are_among_a_released_files(name):
    theirs = manifest(name) | (depth_network() if name.startswith("512-depth") else {})
    absent = ("embedder.", "noise_augmentor.data_") if name.endswith("no-visual") else ()
    for tensor, shape in convert.tensor_shapes(configs.get(FILES[name]), "ldm").items():
        assert tensor.startswith(absent) or theirs[tensor] == shape


def test_the_depth_network_in_a_released_file_is_counted():
    shapes = manifest("512-depth-ema.no-midas") | depth_network()
    assert convert.parameter_counts(shapes)["depth"] == 121_196_289  # of 123,146,985 in the file
    gone, changed = "pretrained.model.blocks.11.attn.qkv.bias", "scratch.refinenet4.out_conv.weight"
    del shapes[f"depth_model.model.{gone}"]
    shapes[f"depth_model.model.{changed}"] = (256, 256, 3, 3)
    shapes["depth_model.model.scratch.refinenet5.out_conv.weight"] = (1,)
    with pytest.raises(CheckpointError) as error:
        convert.parameter_counts(shapes)
    for part in ("3 differences", f"{gone} is missing", f"{changed} has the shape [256, 256, 3, 3]",
                 "refinenet5.out_conv.weight [1] is unknown"):  # fmt: skip
        assert part in str(error.value)


def test_averages_have_their_names_without_dots():
    theirs = manifest("sd-v1-4-full-ema")
    ours = {naming.ema_name(name) for name in theirs if name.startswith("model.diffusion_model.")}
    assert ours | {"model_ema.decay", "model_ema.num_updates"} == {n for n in theirs if n.startswith("model_ema.")}


def test_every_difference_is_named_as_the_file_spells_it():
    shapes = manifest("sd-v1-4")
    gone, changed = "model.diffusion_model.out.2.bias", "first_stage_model.quant_conv.weight"
    del shapes[gone]
    shapes[changed] = (8, 8, 3, 3)
    shapes["model.diffusion_model.extra.weight"] = (1,)
    with pytest.raises(CheckpointError) as error:
        convert.parameter_counts(shapes)
    for part in ("3 differences", f"{gone} is missing", f"{changed} has the shape [8, 8, 3, 3] instead of [8, 8, 1, 1]",
                 "model.diffusion_model.extra.weight [1] is unknown"):  # fmt: skip
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"lora_unet_down.lora_up.weight": (1, 1)}, "LoRA"),
        ({"control_model.input_blocks.0.0.weight": (1,)}, "ControlNet"),
        ({"model.diffusion_model.joint_blocks.0.x": (1,)}, "Stable Diffusion 3"),
        ({"something": (1,)}, "no Stable Diffusion UNet"),
        ({"model.diffusion_model.time_embed.0.weight": (1280, 192)}, "width 192"),
    ],
)
def test_what_is_no_model_of_ours_is_named(shapes, message):
    with pytest.raises(CheckpointError, match=message):
        convert.parameter_counts(shapes)


def test_layouts_keep_what_a_matrix_and_a_convolution_compute():
    rng = np.random.default_rng(0)
    x, matrix = rng.normal(size=5), rng.normal(size=(3, 5))  # PyTorch: y = W x
    np.testing.assert_allclose(x @ axes.to_flax("matrix", matrix), matrix @ x)
    np.testing.assert_allclose(x @ axes.to_flax("matrix", matrix[:, :, None, None]), matrix @ x)
    kernel = rng.normal(size=(3, 5, 2, 2))  # [out, in, height, width]
    patch = rng.normal(size=(2, 2, 5))
    want = np.einsum("oihw,hwi->o", kernel, patch)
    np.testing.assert_allclose(np.einsum("hwio,hwi->o", axes.to_flax("convolution", kernel), patch), want)
    back = axes.to_torch("convolution", axes.to_flax("convolution", kernel))
    assert np.array_equal(back, kernel)
