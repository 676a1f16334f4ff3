"""Files that are no whole model are named for what they are, wherever a model is expected, with what to do."""

import json

import numpy as np
import pytest
from checkpoint_writer import safetensors_file, torch_zip
from pickle_writer import tensors as pickled_tensors
from small_models import model, write

from sdjax import convert
from sdjax.convert import CheckpointError, checkpoint
from sdjax.scripts.main import main

BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
NAMES = {  # what the sentence says, and a name of each kind's
    "a LoRA in kohya's names": [f"lora_unet_{BLOCK.replace('.', '_')}_to_q.lora_down.weight",
                                      "lora_te_text_model_encoder_layers_0_mlp_fc1.alpha"],
    "a LoRA in diffusers' names": [f"unet.{BLOCK}.processor.to_q_lora.down.weight",
                                         f"unet.{BLOCK}.to_q.lora.up.weight",
                                         "text_encoder.text_model.x.q_proj.lora_linear_layer.up.weight"],
    "a LoRA in PEFT's names": [f"base_model.model.{BLOCK}.to_q.lora_A.weight", "unet.x.lora_B.default.weight",
                                     f"unet.{BLOCK}.to_q.lora_magnitude_vector", "lora_unet_x.dora_scale"],
    "LyCORIS": ["lora_unet_x.hada_w1_a", "lycoris_x.lokr_w2", "lora_unet_x.oft_blocks", "oft_unet_x.oft_blocks",
                "lora_unet_x.on_input", "lora_unet_x.diff_b", "lora_unet_x.w_norm", "lora_unet_x.b1.weight"],
    "a LoRA for Stable Diffusion XL": ["lora_te2_text_model_x.lora_up.weight"],
    "a LoRA for Flux": ["transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight"],
    "a textual inversion": ["emb_params", "<cat-toy>", "string_to_param.*", "clip_l"],
    "a hypernetwork": ["768.0.linear.0.weight"],
    "a control-LoRA": ["lora_controlnet"],
    "a ControlNet": ["control_model.zero_convs.0.0.weight", "input_hint_block.0.weight",
                     "controlnet_cond_embedding.conv_in.weight", "controlnet_down_blocks.0.weight"],
    "a T2I-Adapter": ["body.0.block1.weight", "body.0.in_conv.weight", "adapter.body.0.resnets.0.block1.weight"],
    "an IP-Adapter": ["image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"],
    "motion modules": [f"{BLOCK[:13]}.motion_modules.0.temporal_transformer.norm.weight"],
    "a motion LoRA": ["module.down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0"
                      ".attention_blocks.0.processor.to_q_lora.down.weight"],
    "TAESD": ["1.conv.0.weight", "decoder.layers.1.conv.0.weight"],
    "an upscaler": ["model.1.sub.0.RDB1.conv1.0.weight", "RRDB_trunk.0.RDB1.conv1.weight", "body.0.rdb1.conv1.weight",
                    "body.3.weight", "conv_first.weight"],
    "a CLIP image tower": ["vision_model.encoder.layers.0.mlp.fc1.weight", "visual.conv1.weight"],
    "a safety checker": ["concept_embeds"],
    "Inception v3": ["Mixed_5b.branch1x1.conv.weight"],
    "DINOv2": ["blocks.3.ls1.gamma", "encoder.layer.0.layer_scale1.lambda1"],
    "Stable Diffusion XL": ["conditioner.embedders.1.model.ln_final.bias"],
    "Stable Diffusion 3": ["model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"],
    "Flux": ["double_blocks.0.img_attn.qkv.weight", "single_transformer_blocks.0.attn.to_q.weight"],
    "PixArt": ["adaln_single.linear.weight"],
    "Stable Cascade": ["clip_txt_mapper.weight"],
    "a T5 text encoder": ["encoder.block.0.layer.0.SelfAttention.k.weight"],
    "a text encoder alone": ["text_model.encoder.layers.0.mlp.fc1.weight", "transformer.resblocks.0.ln_1.weight"],
    "an autoencoder": ["encoder.down.0.block.0.conv1.weight", "decoder.up_blocks.0.resnets.0.conv1.weight",
                       "first_stage_model.decoder.up.0.block.0.conv1.weight"],
    "a UNet alone": ["down_blocks.0.resnets.0.conv1.weight", "middle_block.0.in_layers.0.weight"],
    "an optimizer's state": ["state.0.exp_avg"],
    "a quantised model": ["x.weight.quant_state.bitsandbytes__nf4", "scaled_fp8", "a.scale_weight", "a.SCB"],
    "AltDiffusion": ["cond_stage_model.roberta.embeddings.x"],
    "a language model": ["model.layers.0.self_attn.q_proj.weight"],
}  # fmt: skip
CASES = [(what, name) for what, names in NAMES.items() for name in names]


@pytest.mark.parametrize(("what", "name"), CASES)
def test_a_file_is_named_for_what_it_is(what, name, tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors_file({name: np.ones((2, 3), np.float32)}))
    with pytest.raises(CheckpointError, match=rf"a.safetensors: it is .*{what}.*; .+") as caught:
        convert.load(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    report = convert.inspect(path)
    assert what in report.kind
    assert what in report.text()


PICKLES = {
    "a textual inversion": {"string_to_token": {"*": 265}, "string_to_param": {"*": np.ones((1, 768), np.float32)},
                            "name": "cat", "step": 3, "sd_checkpoint": None, "sd_checkpoint_name": None},
    "a hypernetwork": {768: ({"linear.0.weight": np.ones((2, 2), np.float32)},) * 2, "layer_structure": [1, 2, 1]},
    "an IP-Adapter": {"image_proj": {"proj.weight": np.ones((2, 2), np.float32)},
                      "ip_adapter": {"1.to_k_ip.weight": np.ones((2, 2), np.float32)}},
    "an optimizer's state": {"state": {0: {"exp_avg": np.ones(2, np.float32)}}, "param_groups": [{"lr": 1.0}]},
    "an upscaler": {"params_ema": {"body.0.rdb1.conv1.weight": np.ones((2, 2), np.float32)}},
}  # fmt: skip


def stored(value):
    if isinstance(value, dict):
        return {key: stored(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(map(stored, value))
    return pickled_tensors({"a": value})["a"] if isinstance(value, np.ndarray) else value


@pytest.mark.parametrize("what", PICKLES)
def test_so_are_pickles(what, tmp_path):
    (tmp_path / "a.pt").write_bytes(torch_zip(stored(PICKLES[what])))
    with pytest.raises(CheckpointError, match=what):
        convert.load(tmp_path / "a.pt")


BYTES = {
    "a file of ggml's": ("a.ggml", b"ggml\3\0\0\0" + bytes(40)),
    "an ONNX model": ("a.onnx", b"\x08\x07\x12\x07pytorch\x1a\x062.0.1:" + bytes(40)),
    "a TensorRT engine": ("a.engine", b"ftrt" + b"\1" * 40),
    "a Core ML model": ("a.mlmodel", b"\x08\x01\x12\x90\x01\n" + b"\1" * 40),
    "HDF5": ("a.h5", b"\x89HDF\r\n\x1a\n" + bytes(40)),
    "msgpack": ("a.msgpack", b"\x84\xa7conv_in" + bytes(40)),
    "a picture": ("a.safetensors", b"\x89PNG\r\n\x1a\n" + bytes(40)),
    "a web page": ("a.safetensors", b"\n<!DOCTYPE html><html></html>"),
    "Git LFS pointer": ("a.ckpt", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n"),
    "a packed archive": ("a.ckpt", b"\x1f\x8b\x08" + bytes(40)),
    "a picture ": ("a.ckpt", b"\xff\xd8\xff\xe0" + bytes(40)),
}


@pytest.mark.parametrize("what", BYTES)
def test_so_are_files_that_are_no_checkpoints(what, tmp_path, capsys):
    name, data = BYTES[what]
    (tmp_path / name).write_bytes(data)
    path = str(tmp_path / name)
    with pytest.raises(CheckpointError, match=rf"{what.strip()}.*; .+"):
        convert.load(path)
    assert main(["inspect", path]) == 0
    assert what.strip() in capsys.readouterr().out
    assert main(["convert", path, str(tmp_path / "out")]) == 3
    assert what.strip() in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("index", "what"),
    [
        ({"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]}, "FluxPipeline .Flux"),
        ({"_class_name": "StableDiffusionXLPipeline", "unet": ["diffusers", "X"], "vae": ["diffusers", "X"],
          "text_encoder": ["transformers", "X"], "text_encoder_2": ["transformers", "X"]}, "Stable Diffusion XL"),
        ({"_class_name": "MyPipeline", "vae": ["diffusers", "X"], "unet": ["diffusers", "X"]}, "diffusers' MyPipeline"),
    ],
)  # fmt: skip
def test_so_are_folders_of_other_pipelines(index, what, tmp_path):
    for part in ("unet", "vae", "transformer"):
        (tmp_path / part).mkdir()
        write(tmp_path / part / "diffusion_pytorch_model.safetensors", {"x": np.ones(1, np.float32)})
        (tmp_path / part / "config.json").write_text("{}")
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=f"it is a folder of {what}|it is a folder of diffusers' {what}|{what}"):
        convert.load(tmp_path)
    assert convert.inspect(tmp_path).kind is not None


@pytest.mark.parametrize(
    ("file", "what"),
    [
        ("adapter_config.json", "LoRA"), ("model.onnx", "ONNX"),
        ("Unet.mlmodelc", "Core ML"), ("openvino_model.xml", "OpenVINO"), ("diffusion_flax_model.msgpack", "Flax"),
        ("optimizer.bin", "optimizer"), ("unet.engine", "TensorRT"),
    ],
)  # fmt: skip
def test_so_are_folders_without_weights(file, what, tmp_path):
    (tmp_path / file).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=f"it is a .*{what}.*; .+"):
        convert.load(tmp_path)
    assert what in convert.inspect(tmp_path).kind


def test_an_autoencoder_of_another_models_latents_is_refused(tmp_path):
    config, tensors = model("v1")
    bare = {name.removeprefix("first_stage_model."): array for name, array in tensors.items()
            if name.startswith("first_stage_model.")}  # fmt: skip
    folder = tmp_path / "vae"
    convert.convert(write(tmp_path / "a.safetensors", tensors), tmp_path / "whole", to="diffusers", config=config)
    (tmp_path / "whole" / "vae").rename(folder)
    described = json.loads((folder / "config.json").read_text())
    convert.load(tensors, config=config, vae=folder)
    (folder / "config.json").write_text(json.dumps(described | {"scaling_factor": 0.13025}))
    with pytest.raises(CheckpointError, match=r"scaled by 0.13025 \(Stable Diffusion XL\)"):
        convert.load(tensors, config=config, vae=folder)
    whole = {f"first_stage_model.{name}": array for name, array in bare.items()}
    xl = write(tmp_path / "x.safetensors", whole | {"conditioner.embedders.1.logit_scale": np.ones(1, np.float32)})
    for path in (xl, write(tmp_path / "sdxl_vae.safetensors", bare)):
        with pytest.raises(CheckpointError, match="Stable Diffusion XL"):
            convert.load(tensors, config=config, vae=path)
    convert.load(tensors, config=config, vae=write(tmp_path / "vae-ft-mse.safetensors", bare))
    lora = write(tmp_path / "l.safetensors", {"lora_unet_x.lora_up.weight": np.ones((1, 1), np.float32)})
    with pytest.raises(CheckpointError, match="it was given for its autoencoder, and holds none.*LoRA"):
        convert.load(tensors, config=config, vae=lora)


def test_a_mapping_of_arrays_is_recognised_too():
    with pytest.raises(CheckpointError, match="it is a ControlNet"):
        convert.load({"control_model.input_hint_block.0.weight": np.ones(1, np.float32)})
    assert checkpoint.open_checkpoint({"a": np.ones(1)}).layout == "ldm"
