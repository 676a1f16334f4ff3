"""Files of motion modules and motion LoRAs: every layout, what is refused, and what is named."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from sdjax import convert
from sdjax.convert import CheckpointError
from sdjax.nn.motion import sinusoid

import models
import motion_files
from motion_files import V1, V2, V3


def same(one, other) -> bool:
    found, wanted = (dict(flat(tree)) for tree in (one.params, other.params))
    return found.keys() == wanted.keys() and all(np.array_equal(found[key], wanted[key]) for key in found)


def flat(tree, path=()):
    for key, value in tree.items():
        yield from flat(value, (*path, key)) if isinstance(value, dict) else [((*path, key), value)]


@pytest.mark.parametrize("names", ["animatediff", "module", "diffusers"])
@pytest.mark.parametrize("config", [V1, V2, V3])
def test_every_layout_gives_the_same_modules(tmp_path, names, config):
    save_file({k: np.ascontiguousarray(v) for k, v in motion_files.tensors(config, names=names).items()},
              tmp_path / "diffusion_pytorch_model.safetensors")  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps({"motion_max_seq_length": config.positions}))
    place = tmp_path if names == "diffusers" else tmp_path / "diffusion_pytorch_model.safetensors"
    loaded = convert.load_motion(place, models.TINY.unet)
    assert loaded.config == config
    assert same(loaded, motion_files.modules(config))


def test_positions_come_from_the_file_unless_they_are_zeros():
    tensors = motion_files.tensors(V1)
    place = next(name for name in tensors if name.endswith("attention_blocks.1.pos_encoder.pe"))
    block = convert.load_motion(tensors | {place: tensors[place] / 2}).params["down_blocks_0"]["motion_modules_0"]
    np.testing.assert_array_equal(block["transformer_blocks_0"]["pos_encoder2"], sinusoid(24, 32) / 2)
    zeros = {name: value * 0 if "pos_encoder" in name else value for name, value in tensors.items()}
    assert same(convert.load_motion(zeros), motion_files.modules(V1))


def test_all_that_does_not_fit_is_named_at_once():
    tensors = motion_files.tensors()
    missing, wide, *_ = [name for name in tensors if name.endswith("to_k.weight")]
    del tensors[missing]
    with pytest.raises(CheckpointError) as caught:
        convert.load_motion(tensors | {wide: np.zeros((32, 33), np.float32), "extra.weight": np.zeros(3, np.float32)})
    assert all(name in str(caught.value) for name in (missing, wide, "extra.weight"))


def other(**changes):
    return {**motion_files.tensors(), **{name: np.zeros(shape, np.float32) for name, shape in changes.items()}}


SDXL = {f"down_blocks.{i}.motion_modules.0.temporal_transformer.norm.weight": np.ones(32 * c, np.float32)
        for i, c in enumerate((10, 20, 40))}  # fmt: skip


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        (SDXL, "three levels, such as Stable Diffusion XL's"),
        (other(**{"controlnet_cond_embedding.conv_in.weight": (4, 4)}), "SparseCtrl"),
        (motion_files.lora(), "it is a motion LoRA"),
        ({"a": np.zeros(3, np.float32)}, "holds no motion modules"),
        (other(**{"down_blocks.99.motion_modules.99.temporal_transformer.norm.weight": (32,)}), "one to five"),
    ],
)
def test_other_files_are_refused_by_name(tensors, sentence):
    with pytest.raises(CheckpointError, match=sentence):
        convert.load_motion(tensors)


def test_modules_of_another_width_are_refused_before_they_are_read():
    with pytest.raises(CheckpointError, match="UNet with 32 channels .* this model's has 320"):
        convert.load_motion(motion_files.tensors(), models.WIDE.unet)


@pytest.mark.parametrize("form", ["processor.to_q_lora.down", "to_q.lora.down", "to_q.lora_A"])
def test_motion_loras_of_every_spelling_are_added_by_their_weight(form):
    up = form.replace("down", "up").replace("lora_A", "lora_B")
    tensors = {}
    for name, array in motion_files.lora().items():
        piece = form if ".down." in name else up
        tensors[name.partition("processor.")[0] + piece + ".weight"] = array
    lora = convert.load_motion_lora(tensors)
    before = motion_files.modules()
    after = convert.with_motion_loras(before, [(lora, 0.5)])
    layer = "down_blocks_0", "motion_modules_0", "transformer_blocks_0", "attn1", "to_q", "kernel"
    down, scaled = (tensors[name] for name in sorted(tensors, key=lambda name: "up" in name or "_B" in name))
    change = dict(flat(after.params))[layer] - dict(flat(before.params))[layer]
    np.testing.assert_allclose(change, 0.5 * (scaled @ down).T, atol=1e-5)  # rounding of the sum in float32
    unchanged = dict(flat(after.params)), dict(flat(before.params))
    assert all(unchanged[0][key] is unchanged[1][key] for key in unchanged[0] if key != layer)


def test_a_motion_lora_for_other_modules_is_refused():
    lora = convert.load_motion_lora(
        {k.replace("down_blocks.0", "mid_block"): v for k, v in motion_files.lora().items()}
    )
    with pytest.raises(CheckpointError, match="no such layer"):
        convert.with_motion_loras(motion_files.modules(V3), [(lora, 1.0)])
    assert convert.with_motion_loras(motion_files.modules(V2), [(lora, 1.0)])


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (motion_files.tensors(V1), ["motion modules v1", "32 channels, up to 24 frames"]),
        (motion_files.tensors(V2, names="diffusers"), ["motion modules v2", "up to 32 frames"]),
        (motion_files.tensors(V3, names="module"), ["motion modules v3"]),
        (motion_files.lora(), ["motion LoRA for AnimateDiff v1 or v3", "1 layers, rank 2"]),
        (other(**{"controlnet_cond_embedding.conv_in.weight": (4, 4)}), ["a SparseCtrl"]),
    ],
)
def test_inspect_names_the_version(tmp_path, tensors, words):
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, tmp_path / "a.safetensors")
    report = convert.inspect(tmp_path / "a.safetensors").text()
    assert all(word in report for word in words)
