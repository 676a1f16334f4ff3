"""Adapters written in the names of kohya's scripts, diffusers and PEFT."""

import hashlib
import json
import re

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from sdjax.adapters import Difference, LowRank
from sdjax.adapters.dora import WeightDecomposed
from sdjax.adapters.families import BOFT, IA3, OFT, GLoRA, LoHa, LoKr
from sdjax.convert import CheckpointError, load_adapter
from sdjax.convert.adapters.write import write_adapter
from sdjax.convert.adapters.write_kernels import alpha_of

import models

LINEAR = "unet/down_blocks_0/attentions_0/transformer_blocks_0/attn1/to_q/kernel"
POINTWISE = "unet/mid_block/attentions_0/proj_in/kernel"
CONVOLUTION = "unet/up_blocks_0/resnets_1/conv1/kernel"
TEXT = "text/text_model/encoder/layers_0/mlp/fc1/kernel"
SHAPES = {LINEAR: (32, 32), POINTWISE: (32, 32), CONVOLUTION: (3, 3, 64, 32), TEXT: (32, 128)}
NAMES = {
    LINEAR: "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    POINTWISE: "mid_block.attentions.0.proj_in",
    CONVOLUTION: "up_blocks.0.resnets.1.conv1",
    TEXT: "text_model.encoder.layers.0.mlp.fc1",
}


def low_rank(path, rank=2, alpha=1.0, dtype=np.float32):
    rng = np.random.default_rng(len(path) + rank)
    *window, d = SHAPES[path]
    return LowRank(
        rng.normal(size=(*window, rank)).astype(dtype), rng.normal(size=(rank, d)).astype(dtype), alpha / rank
    )


def adapter(dtype=np.float32):
    ranks = {LINEAR: (2, 1.0), POINTWISE: (2, 1.0), CONVOLUTION: (3, 1.5), TEXT: (2, 7.0)}
    return {path: low_rank(path, *one, dtype) for path, one in ranks.items()}


def header(path):
    with safe_open(path, "numpy") as file:
        return file.metadata()


def in_torch_order(value):
    return np.asarray(value).T if value.ndim == 2 else np.asarray(value).transpose(3, 2, 0, 1)


def test_kohya_files_hold_the_change_as_alpha_by_rank_times_up_times_down(tmp_path):
    changes = adapter()
    write_adapter(tmp_path / "a.safetensors", changes, models.TINY)
    tensors = load_file(tmp_path / "a.safetensors")
    assert len(tensors) == 3 * len(changes)
    for path, change in changes.items():
        name = ("lora_te_" if path == TEXT else "lora_unet_") + NAMES[path].replace(".", "_")
        down, up, alpha = (tensors[f"{name}.{end}"] for end in ("lora_down.weight", "lora_up.weight", "alpha"))
        assert down.ndim == up.ndim == (4 if path in (POINTWISE, CONVOLUTION) else 2)  # v1 has a 1x1 convolution there
        got = alpha / len(down) * (up.reshape(len(up), -1) @ down.reshape(len(down), -1))
        want = in_torch_order(change.difference(np.zeros(SHAPES[path], np.float32)))
        np.testing.assert_allclose(got, want.reshape(len(up), -1), rtol=1e-5, atol=1e-6)


def test_factors_and_alphas_keep_their_bits_and_types_in_every_layout_with_alphas(tmp_path):
    changes = adapter(ml_dtypes.bfloat16)
    write_adapter(tmp_path / "a.safetensors", changes, models.TINY)
    write_adapter(tmp_path / "b.safetensors", changes, models.TINY, to="diffusers")
    write_adapter(tmp_path / "c", changes, models.TINY, to="peft")
    kohya, new = load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "b.safetensors")
    parts = {part: load_file(tmp_path / "c" / part / "adapter_model.safetensors") for part in ("unet", "text_encoder")}
    for path in changes:
        part = "text_encoder" if path == TEXT else "unet"
        own = kohya[
            "lora_" + part.replace("text_encoder", "te") + "_" + NAMES[path].replace(".", "_") + ".lora_up.weight"
        ]
        assert own.dtype == ml_dtypes.bfloat16
        end = f"{NAMES[path].removeprefix('text_model.')}.lora_B.weight"  # transformers 5 has no such prefix
        for other in (new[f"{part}.{NAMES[path]}.lora_B.weight"], parts[part][f"base_model.model.{end}"]):
            assert own.tobytes() == other.tobytes()


def test_ranks_and_alphas_are_found_by_pefts_rule_for_patterns(tmp_path):
    write_adapter(tmp_path / "a.safetensors", adapter(), models.TINY, to="diffusers")
    write_adapter(tmp_path / "b", adapter(), models.TINY, to="peft")
    told = json.loads(header(tmp_path / "a.safetensors")["lora_adapter_metadata"])
    folders = {part: json.loads((tmp_path / "b" / part / "adapter_config.json").read_text())
               for part in ("unet", "text_encoder")}  # fmt: skip
    for path, change in adapter().items():
        part, name = ("text_encoder" if path == TEXT else "unet"), NAMES[path]
        for config in (folders[part], {key.removeprefix(f"{part}."): value for key, value in told.items()}):
            found = {}
            for key in ("rank", "alpha"):  # PEFT: the first key that is the name or its end after a dot
                patterns = config[f"{key}_pattern"]
                hits = [value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", name)]
                found[key] = hits[0] if hits else config[{"rank": "r", "alpha": "lora_alpha"}[key]]
            assert found["rank"] == change.up.shape[0]
            assert found["alpha"] / found["rank"] == pytest.approx(change.scale, rel=1e-7)


def test_the_old_names_of_diffusers_have_alphas_multiplied_into_up(tmp_path):
    write_adapter(tmp_path / "a.safetensors", adapter(), models.TINY, to="diffusers-old")
    tensors = load_file(tmp_path / "a.safetensors")
    assert len(tensors) == 2 * len(adapter())
    change = low_rank(LINEAR)
    np.testing.assert_array_equal(tensors[f"unet.{NAMES[LINEAR]}.lora.up.weight"], change.up.T * 0.5)
    assert f"text_encoder.{NAMES[TEXT]}.lora_linear_layer.down.weight" in tensors


def test_hashes_are_those_of_the_files_own_bytes(tmp_path):
    told = {"ss_seed": "42", "title": "mine", "sshs_model_hash": "0" * 64, "modelspec.hash_sha256": "0x0"}
    write_adapter(tmp_path / "a.safetensors", adapter(), models.TINY, metadata=told, dtype="float16")
    data = (tmp_path / "a.safetensors").read_bytes()
    digest = hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()
    found = header(tmp_path / "a.safetensors")
    want = {
        "sshs_model_hash": digest, "modelspec.hash_sha256": f"0x{digest}", "ss_seed": "42", "title": "mine",
        "ss_v2": "False", "ss_network_dim": "Dynamic", "ss_network_module": "networks.lora",
    }  # fmt: skip
    assert found | want == found


def test_differences_of_any_leaf_get_lycoris_names(tmp_path):
    value = np.arange(32, dtype=np.float32)
    kernel = np.random.default_rng(0).normal(size=SHAPES[CONVOLUTION]).astype(np.float32)
    changes = {
        CONVOLUTION: Difference(kernel),
        CONVOLUTION.replace("kernel", "bias"): Difference(value),
        "unet/conv_norm_out/scale": Difference(value),
        "unet/conv_norm_out/bias": Difference(value),
    }
    write_adapter(tmp_path / "a.safetensors", changes, models.TINY)
    tensors = load_file(tmp_path / "a.safetensors")
    assert set(tensors) == {
        "lora_unet_up_blocks_0_resnets_1_conv1.diff", "lora_unet_up_blocks_0_resnets_1_conv1.diff_b",
        "lora_unet_conv_norm_out.w_norm", "lora_unet_conv_norm_out.b_norm",
    }  # fmt: skip
    np.testing.assert_array_equal(tensors["lora_unet_up_blocks_0_resnets_1_conv1.diff"], in_torch_order(kernel))
    with pytest.raises(CheckpointError, match=r"conv_norm_out.*write kohya files instead"):
        write_adapter(tmp_path / "b.safetensors", changes, models.TINY, to="diffusers")
    assert not (tmp_path / "b.safetensors").exists()


def normal(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


KINDS = {  # by kind: the layer, and a change of its kernel; weights are [o, i] and [o, i, 3, 3]
    "LoHa": (LINEAR, LoHa(normal(32, 3), normal(3, 32), normal(32, 3), normal(3, 32), scale=0.5)),
    "LoHa, Tucker": (CONVOLUTION, LoHa(normal(3, 32), normal(3, 64), normal(3, 32), normal(3, 64),
                                       normal(3, 3, 3, 3), normal(3, 3, 3, 3), scale=2.0)),
    "LoKr": (TEXT, LoKr(w1=normal(8, 4), w2=normal(16, 8))),
    "LoKr, factored": (CONVOLUTION, LoKr(w1_a=normal(4, 2), w1_b=normal(2, 8), w2_a=normal(8, 2), w2_b=normal(2, 72),
                                         scale=0.25)),
    "(IA)^3": (LINEAR, IA3(normal(32), on_input=True)),
    "GLoRA": (LINEAR, GLoRA(normal(32, 2), normal(2, 32), normal(32, 2), normal(2, 32), scale=0.5)),
    "OFT": (LINEAR, OFT(normal(8, 4, 4), 0.32, normal(32, 1))),
    "BOFT": (LINEAR, BOFT(normal(3, 8, 4, 4))),
    "DoRA": (CONVOLUTION, WeightDecomposed(low_rank(CONVOLUTION), normal(32))),
    "DoRA of inputs": (TEXT, WeightDecomposed(low_rank(TEXT), normal(32), per_input=True)),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_read_again_with_the_same_numbers(kind, tmp_path):
    path, change = KINDS[kind]
    write_adapter(tmp_path / "a.safetensors", {path: change}, models.TINY)
    (got,) = load_adapter(tmp_path / "a.safetensors", models.TINY).adapter.values()
    assert type(got) is type(change)
    one, two = ([leaf for leaf in jax.tree.leaves(vars(delta)) if not isinstance(leaf, str)] for delta in (change, got))
    assert len(one) == len(two) > 0
    for a, b in zip(one, two):
        np.testing.assert_array_equal(np.float32(a), np.float32(b))
    if kind == "DoRA":  # PEFT's names hold it too
        write_adapter(tmp_path / "b", {path: change}, models.TINY, to="peft")
        (again,) = load_adapter(tmp_path / "b", models.TINY).adapter.values()
        np.testing.assert_array_equal(again.magnitude, change.magnitude)
    else:
        with pytest.raises(CheckpointError, match="write kohya files instead"):
            write_adapter(tmp_path / "b", {path: change}, models.TINY, to="peft")


def test_both_networks_in_pefts_folder_are_read_again(tmp_path):
    changes = adapter()
    write_adapter(tmp_path / "a", changes, models.TINY, to="peft")
    got = load_adapter(tmp_path / "a", models.TINY).adapter
    assert set(got) == set(changes)
    for path, change in changes.items():
        assert (np.asarray(got[path].down).tobytes(), got[path].scale) == (change.down.tobytes(), change.scale)


def test_an_alpha_is_found_again_from_the_scale_in_float32():
    for rank in (1, 3, 7, 16, 96):
        for alpha in (0.0, 0.3, 1.0, 5.0, 1e-3, 24.0):
            assert np.float32(alpha_of(np.float32(alpha / rank), rank)) == np.float32(alpha)


def test_what_cannot_be_written_is_refused_in_one_sentence_and_leaves_nothing(tmp_path):
    wrong = {"unet/nowhere/kernel": low_rank(LINEAR), CONVOLUTION: low_rank(LINEAR)}
    with pytest.raises(ValueError, match=r"no parameter 'unet/nowhere/kernel'.*conv1.*the change is \[32, 32\]"):
        write_adapter(tmp_path / "a.safetensors", wrong, models.TINY)
    nan = low_rank(LINEAR)
    nan.up[0, 0] = np.nan
    with pytest.raises(ValueError, match="lora_up.weight holds numbers that are not finite"):
        write_adapter(tmp_path / "a.safetensors", {LINEAR: nan}, models.TINY)
    large = low_rank(LINEAR)
    large.up[0, 0] = 1e6
    with pytest.raises(CheckpointError, match="float16 cannot hold"):
        write_adapter(tmp_path / "a.safetensors", {LINEAR: large}, models.TINY, dtype="float16")
    for name, layout in (("a.ckpt", "kohya"), ("a.safetensors", "peft"), ("a", "diffusers"), ("a.safetensors", "x")):
        with pytest.raises(ValueError, match="got"):
            write_adapter(tmp_path / name, adapter(), models.TINY, to=layout)
    with pytest.raises(ValueError, match="changes nothing"):
        write_adapter(tmp_path / "a.safetensors", {}, models.TINY)
    assert not list(tmp_path.iterdir())
    (tmp_path / "peft").mkdir()
    for name, layout in (("a.safetensors", "kohya"), ("peft", "peft")):
        (tmp_path / name).exists() or (tmp_path / name).write_text("mine")
        with pytest.raises(FileExistsError, match="exists; choose another name"):
            write_adapter(tmp_path / name, adapter(), models.TINY, to=layout)
