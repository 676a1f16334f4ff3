"""A whole model is read whatever lies beside it, in its file, in its folder and before its names; a part never is."""

import json
import shutil

import jax
import numpy as np
import pytest
from checkpoint_writer import torch_zip
from pickle_writer import Call, Global
from pickle_writer import tensors as pickled_tensors
from safetensors.numpy import load_file
from small_models import model, write

from sdjax import convert
from sdjax.convert import CheckpointError
from sdjax.convert.describe import diffusers_config
from sdjax.convert.names import naming

CONFIG, TENSORS = model("v1")
UNET = "model.diffusion_model."
ONE = np.ones(1, np.float32)
NUMBER = np.asarray(7)


@pytest.fixture(scope="module")
def want():
    return convert.load(TENSORS, config=CONFIG)[1]


def same(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and jax.tree.all(jax.tree.map(np.array_equal, a, b))


POSITIONS = "cond_stage_model.transformer.embeddings.position_ids"
EMA = naming.ema_name(f"{UNET}out.2.bias")
LEFTOVERS = {
    "a scale factor": {"scale_factor": np.float32(0.18215)[...]},
    "schedules": {"betas": ONE, "posterior_mean_coef1": ONE, "denoiser.sigmas": ONE, "log_one_minus_alphas": ONE},
    "some averages": {EMA: np.zeros(4, np.float32), "model_ema.decay": ONE[0][...]},
    "positions in two spellings": {POSITIONS: np.arange(77)[None], POSITIONS.replace("r.", "r.text_model."): ONE},
    "CLIP's rest": {"cond_stage_model.logit_scale": ONE, "cond_stage_model.model.attn_mask": ONE,
                    "cond_stage_model.transformer.text_projection.weight": ONE},
    "losses": {"first_stage_model.loss.discriminator.main.0.weight": ONE, "loss.perceptual_loss.lin0.weight": ONE},
    "a ControlNet": {"control_model.input_blocks.0.0.weight": ONE, "control_model.zero_convs.0.0.bias": ONE},
    "LoRA weights": {"lora_unet_mid_block_attentions_0_proj_in.alpha": ONE, "lora_te_text_model_x.lora_up.weight": ONE},
    "an embedding": {"embedding_manager.string_to_param_dict.*": ONE, "emb_params": ONE},
    "an optimizer": {"optimizer.state.0.exp_avg": ONE, "optimizer_states.0.state.1.exp_avg_sq": ONE},
    "counters": {"step": NUMBER, "iteration": NUMBER, "x.num_batches_tracked": NUMBER, "global_step": NUMBER},
    "markers": {"edm_mean": ONE, "edm_std": ONE, "sd_merge_recipe": ONE, "__index_level_0__": ONE},
    "a safety checker": {"safety_checker.concept_embeds": ONE, "safety_checker.vision_model.x": ONE},
    "an upscaler": {"RRDB_trunk.0.RDB1.conv1.weight": ONE, "body.0.rdb1.conv1.weight": ONE},
    "motion modules": {"motion_modules.0.temporal_transformer.norm.weight": ONE},
}  # fmt: skip


@pytest.mark.parametrize("case", LEFTOVERS)
def test_what_lies_beside_a_model_in_its_file_is_no_fault(case, want):
    for tensors in (TENSORS | LEFTOVERS[case], LEFTOVERS[case] | TENSORS):
        found = convert.load_model(tensors, config=CONFIG)
        assert same(found.params, want)
    told = [notice for notice in found.report.notices if "no part of the model" in notice]
    assert len(told) <= 1
    for name in set(LEFTOVERS[case]) - set(TENSORS):
        if name != EMA and not name.startswith("model_ema."):
            assert name in found.extras


def test_the_note_counts_and_names_a_few_and_they_travel_along(tmp_path):
    extras = {f"leftover.{n}": np.full(2, n, np.float32) for n in range(8)}
    extras[f"{UNET}leftover"] = np.full(2, 8, np.float32)
    path = write(tmp_path / "a.safetensors", TENSORS | extras, {"sdjax.config": json.dumps(CONFIG.to_dict())})
    report = convert.convert(path, tmp_path / "native")
    assert [n for n in report.notices if "leftover" in n] == [
        "9 tensors are no part of the model, kept beside it and not used: leftover.0, leftover.1, leftover.2, ..."
    ]
    convert.convert(tmp_path / "native", tmp_path / "b.safetensors")
    back = convert.read(tmp_path / "b.safetensors")
    assert all(np.array_equal(back[name], array) for name, array in extras.items())
    assert "leftover.0 [2] is unknown" in convert.inspect(path).odd


PREFIXES = {
    "DDP": lambda name: f"module.{name}",
    "torch.compile": lambda name: name.replace(UNET, f"{UNET}_orig_mod."),
    "torch.compile of all": lambda name: f"_orig_mod.{name}",
    "deepspeed": lambda name: f"_forward_module.{name}",
    "FSDP": lambda name: f"_fsdp_wrapped_module.{name.replace('input_blocks.', 'input_blocks._fsdp_wrapped_module.')}",
    "a state_dict": lambda name: f"state_dict.{name}",
    "a model": lambda name: f"model.{name}",
    "two of them": lambda name: f"ema_model.module.{name}",
    "any": lambda name: f"my.own.thing.{name}",
    "the UNet alone": lambda name: name.replace(UNET, "diffusion_model."),
    "parts": lambda name: name.replace(UNET, "unet.").replace("first_stage_model.", "vae.").replace(
        "cond_stage_model.transformer.", "text_encoder."),
    "no prefix": lambda name: name.removeprefix(UNET),
    "generative-models": lambda name: name.replace("cond_stage_model.", "conditioner.embedders.0."),
}  # fmt: skip


@pytest.mark.parametrize("case", PREFIXES)
def test_prefixes_are_aliases(case, want):
    renamed = {PREFIXES[case](name): array for name, array in TENSORS.items()}
    assert renamed.keys() != TENSORS.keys()
    assert same(convert.load(renamed, config=CONFIG)[1], want)


def test_a_copy_under_a_prefix_never_takes_the_place_of_the_model(want):
    for prefix in ("module.", "ema_model.", "unet_ema.", "model.", "_orig_mod."):
        other = {prefix + name: -array for name, array in TENSORS.items()}
        for tensors in (TENSORS | other, other | TENSORS):
            assert same(convert.load(tensors, config=CONFIG)[1], want)


def test_a_pipeline_in_one_file_with_diffusers_names(tmp_path, want):
    convert.convert(write(tmp_path / "a.safetensors", TENSORS), tmp_path / "folder", to="diffusers", config=CONFIG)
    whole = {name.replace("/", "."): array for name, array in convert.read(tmp_path / "folder").items()}
    assert same(convert.load(whole, config=CONFIG)[1], want)


@pytest.mark.parametrize(
    "around",
    [
        lambda t: {"model_state_dict": t, "optimizer_state_dict": {"state": {}}},
        lambda t: {"params_ema": t}, lambda t: {"params": t}, lambda t: {"model": {"state_dict": t}},
        lambda t: {"ema_model": t, "step": 3}, lambda t: {"net": t},
    ],
)  # fmt: skip
def test_dictionaries_around_the_weights(around, tmp_path, want):
    path = tmp_path / "a.ckpt"
    path.write_bytes(torch_zip(around(pickled_tensors(TENSORS))))
    assert same(convert.load(path, config=CONFIG)[1], want)


def test_missing_misshapen_and_deeper_are_still_refused():
    gone, like = f"{UNET}out.2.bias", f"{UNET}out.2.biass"
    without = {name: array for name, array in TENSORS.items() if name != gone}
    with pytest.raises(CheckpointError, match=f"{gone} is missing .there is {like}, which is unknown"):
        convert.load(without | {like: TENSORS[gone]}, config=CONFIG)
    for name in (f"{UNET}input_blocks.1.1.transformer_blocks.1.norm1.weight", f"{UNET}input_blocks.99.0.op.bias",
                 f"{UNET}input_blocks.1.1.transformer_blocks.0.attn1.to_q.bias"):  # fmt: skip
        with pytest.raises(CheckpointError, match="is unknown"):  # another network, not a leftover
            convert.load(TENSORS | {name: ONE}, config=CONFIG)
    with pytest.raises(CheckpointError, match="and [0-9]+ more$") as caught:
        convert.load(dict.fromkeys(TENSORS, ONE), config=CONFIG)
    assert len(str(caught.value)) < 4000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole")
    convert.convert(write(path / "a.safetensors", TENSORS), path / "folder", to="diffusers", config=CONFIG)
    return path / "folder"


def test_folders_are_read_as_their_index_says(folder, want):
    for name in ("unet_ema", "checkpoint-500", "logs", ".git", ".cache", "safety_checker", "old unet"):
        (folder / name).mkdir()
        (folder / name / "diffusion_pytorch_model.safetensors").write_bytes(b"no checkpoint")
        (folder / name / "config.json").write_bytes(b"no JSON")
    for name in ("optimizer.bin", "random_states_0.pkl", "scheduler.bin", "pytorch_lora_weights.safetensors",
                 "README.md", "model.safetensors", "config.json", "v1-5.ckpt", ".DS_Store", "._x.json"):  # fmt: skip
        (folder / name).write_bytes(b"\0")
    for name in ("model.onnx", "openvino_model.bin", "flax_model.msgpack", "tf_model.h5", "._config.json",
                 "diffusion_pytorch_model.non_ema.safetensors", "generation_config.json"):  # fmt: skip
        (folder / "unet" / name).write_bytes(b"\0")
    found = convert.load_model(folder)
    assert same(found.params, want)
    assert not [notice for notice in found.report.notices if "no part" in notice]


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("unet", {"num_attention_heads": 8, "attention_head_dim": 8}), ("unet", {"dropout": 0.1, "_name_or_path": "x"}),
        ("unet", {"addition_embed_type": None, "upcast_attention": True, "new_key_of_2030": 1}),
        ("unet", {"use_linear_projection": [False] * 4}), ("unet", {"sample_size": None}),
        ("vae", {"force_upcast": True, "shift_factor": None, "latents_mean": None, "use_quant_conv": True}),
        ("vae", {"mid_block_add_attention": True, "latents_std": [1.0] * 4, "latents_mean": [0, 0, 0, 0]}),
        ("text_encoder", {"text_config": None, "projection_dim": 512, "new_key_of_2030": 1}),
    ],
)  # fmt: skip
def test_keys_at_their_neutral_value(file, change, folder):
    files = {path.relative_to(folder).as_posix(): json.loads(path.read_text()) for path in folder.glob("*/config.json")
             if path.parent.name in ("unet", "vae", "text_encoder")}  # fmt: skip
    heads = files["unet/config.json"]["attention_head_dim"]
    if "num_attention_heads" in change:
        change = {"num_attention_heads": heads, "attention_head_dim": heads}
    plain, _ = diffusers_config.config_from_diffusers(files)
    files[f"{file}/config.json"] |= change
    assert diffusers_config.config_from_diffusers(files)[0].unet == plain.unet


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("unet", {"num_attention_heads": 5, "attention_head_dim": 8}, "num_attention_heads .* contradict"),
        ("unet", {"addition_embed_type": "text_time"}, "addition_embed_type .*Stable Diffusion XL"),
        ("unet", {"layers_per_block": [2, 1, 2, 2]}, "layers_per_block .*one number"),
        ("unet", {"_class_name": "UNetMotionModel"}, "UNetMotionModel"),
        ("unet", {"resnet_time_scale_shift": "scale_shift"}, "resnet_time_scale_shift"),
        ("vae", {"_class_name": "AsymmetricAutoencoderKL"}, "AsymmetricAutoencoderKL"),
        ("vae", {"latents_mean": [1.0, 0, 0, 0]}, "latents_mean"),
        ("vae", {"down_block_types": ["AttnDownEncoderBlock2D"] * 4}, "down_block_types"),
        ("vae", {"use_quant_conv": False}, "use_quant_conv"),
    ],
)
def test_keys_that_change_what_is_computed_are_named(file, change, message, folder):
    files = {path.relative_to(folder).as_posix(): json.loads(path.read_text()) for path in folder.glob("*/config.json")
             if path.parent.name in ("unet", "vae", "text_encoder")}  # fmt: skip
    files[f"{file}/config.json"] |= change
    with pytest.raises(ValueError, match=message):
        diffusers_config.config_from_diffusers(files)


@pytest.mark.parametrize("entry", [[1], (1, 2), {"state": {0: {"lr": 0.1}}}, {"a": [{"b": None}]},
                                   Call(Global("torch", "Size"), ((2, 3),)),
                                   {"d": Call(Global("torch", "device"), ("cuda", 0))}])  # fmt: skip
def test_what_is_no_tensor_among_the_weights_is_passed_over(entry, tmp_path, want):
    path = tmp_path / "a.ckpt"
    path.write_bytes(torch_zip({"state_dict": {**pickled_tensors(TENSORS), "optimizer": entry}, "epoch": 1}))
    assert same(convert.load(path, config=CONFIG)[1], want)


def test_a_shards_tensor_that_its_index_lacks_is_an_extra(folder, tmp_path, want):
    whole = shutil.copytree(folder, tmp_path / "whole", ignore=shutil.ignore_patterns("unet_ema"))
    weights = whole / "unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    weights.unlink()
    shard = "diffusion_pytorch_model-00001-of-00001.safetensors"
    write(whole / "unet" / shard, tensors | {"left.over": ONE})
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, shard)}
    (whole / "unet/diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    found = convert.load_model(whole)
    assert same(found.params, want)
    assert "unet/left.over" in found.extras


@pytest.mark.parametrize("prefix", ["unet.", "model.", "_orig_mod.module."])
def test_prefixes_in_a_folders_files_are_aliases(prefix, folder, want):
    files = convert.read(folder)
    tensors = {name.replace("/", f"/{prefix}", 1): array for name, array in files.items()}
    assert same(convert.load(tensors, config=CONFIG)[1], want)


def test_copies_under_two_names_are_read_once_and_written_once(tmp_path, want):
    copies = {name.replace("transformer.text_model.", "transformer."): array for name, array in TENSORS.items()
              if name != POSITIONS.replace("r.", "r.text_model.")}  # fmt: skip
    description = {"sdjax.config": json.dumps(CONFIG.to_dict())}
    path = write(tmp_path / "a.safetensors", TENSORS | copies, description)
    convert.convert(path, tmp_path / "b.safetensors")
    assert convert.read(tmp_path / "b.safetensors").keys() == TENSORS.keys()
    assert same(convert.load(tmp_path / "b.safetensors")[1], want)


@pytest.mark.parametrize(
    ("file", "change"),
    [("vae", {"block_out_channels": None}), ("scheduler", {"beta_schedule": ["linear"]}),
     ("scheduler", {"prediction_type": {}})],
)  # fmt: skip
def test_a_setting_of_another_type_is_named(file, change, folder):
    name = "scheduler/scheduler_config.json" if file == "scheduler" else f"{file}/config.json"
    files = {path: json.loads((folder / path).read_text()) for path in ("unet/config.json", "vae/config.json",
             "text_encoder/config.json", "scheduler/scheduler_config.json")}  # fmt: skip
    files[name] |= change
    with pytest.raises(ValueError, match=next(iter(change))):
        diffusers_config.config_from_diffusers(files)
