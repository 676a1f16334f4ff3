"""Reading a model: whole or refused, which weights, which prediction, whose autoencoder, by whose description."""

import dataclasses
import json

import jax
import ml_dtypes
import numpy as np
import pytest
from small_models import model, write

from sdjax import configs, convert
from sdjax.convert import CheckpointError
from sdjax.convert.describe import ldm_config, prediction
from sdjax.convert.names import naming

UNET = "model.diffusion_model."
YAML = """
model:
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    linear_start: 0.00085
    linear_end: 0.0120
    timesteps: 1000
    conditioning_key: crossattn
    scale_factor: 0.18215
    {extra}
    unet_config:
      target: ldm.modules.diffusionmodules.openaimodel.UNetModel
      params: {{image_size: 32, in_channels: 4, out_channels: 4, model_channels: 320, attention_resolutions: [4, 2, 1],
        num_res_blocks: 2, channel_mult: [1, 2, 4, 4], num_head_channels: 64, use_spatial_transformer: true,
        use_linear_in_transformer: true, transformer_depth: 1, context_dim: 1024, legacy: false}}
    first_stage_config:
      target: ldm.models.autoencoder.AutoencoderKL
      params:
        embed_dim: 4
        ddconfig: {{double_z: true, z_channels: 4, resolution: 256, in_channels: 3, out_ch: 3, ch: 128,
          ch_mult: [1, 2, 4, 4], num_res_blocks: 2, attn_resolutions: [], dropout: 0.0}}
        lossconfig: {{target: torch.nn.Identity}}
    cond_stage_config:
      target: ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder
      params: {{freeze: true, layer: penultimate}}
"""


def leaves_equal(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and jax.tree.all(jax.tree.map(np.array_equal, a, b))


def test_averaged_weights_are_chosen_explicitly():
    config, tensors = model("v1")
    averages = {naming.ema_name(name): -array for name, array in tensors.items() if name.startswith(UNET)}
    both = tensors | averages
    plain = convert.load(tensors, config=config)[1]["unet"]
    negated = jax.tree.map(lambda a: -a, plain)
    assert leaves_equal(convert.load(both, config=config)[1]["unet"], negated)  # auto: those that are meant for use
    assert leaves_equal(convert.load(both, config=config, ema="yes")[1]["unet"], negated)
    assert leaves_equal(convert.load(both, config=config, ema="no")[1]["unet"], plain)
    report = convert.load_model(both, config=config).report
    assert report.ema
    assert "not averaged" in report.notices[0]
    with pytest.raises(CheckpointError, match="holds no averaged weights"):
        convert.load(tensors, config=config, ema="yes")
    with pytest.raises(ValueError, match="'auto', 'yes' or 'no'; got 'maybe'"):
        convert.load(tensors, config=config, ema="maybe")
    del both[naming.ema_name(UNET + "out.2.bias")]
    with pytest.raises(CheckpointError, match="model_ema.diffusion_modelout2bias is missing"):
        convert.load(both, config=config)


@pytest.mark.parametrize("form", ["whole ldm", "bare ldm", "diffusers", "component", "native"])
def test_the_autoencoder_comes_from_another_file(form, tmp_path):
    config, tensors = model("v1")
    other = {name: array * 2 for name, array in tensors.items() if name.startswith("first_stage_model.")}
    if form == "whole ldm":
        path = write(tmp_path / "vae.safetensors", tensors | other)
    elif form == "bare ldm":  # as sd-vae-ft-mse is released, with its discriminator
        bare = {name.removeprefix("first_stage_model."): array for name, array in other.items()}
        path = write(tmp_path / "vae.safetensors", bare | {"loss.discriminator.x": np.ones(1, np.float32)})
    else:
        write(tmp_path / "a.safetensors", tensors | other)
        to = "native" if form == "native" else "diffusers"
        convert.convert(tmp_path / "a.safetensors", tmp_path / "folder", to=to, config=config)
        path = tmp_path / "folder" / ("vae" if form == "component" else "")
    without = {name: array for name, array in tensors.items() if not name.startswith("first_stage_model.")}
    _, params = convert.load(without, config=config, vae=path)
    want = jax.tree.map(lambda a: a * 2, convert.load(tensors, config=config)[1]["vae"])
    assert leaves_equal(params["vae"], want)
    assert leaves_equal(convert.load(tensors, config=config, vae=path)[1]["vae"], want)  # in place of its own
    with pytest.raises(CheckpointError, match="it has no autoencoder; give one by vae="):
        convert.load(without, config=config)


def test_an_unfit_autoencoder_is_refused_by_its_name(tmp_path):
    config, tensors = model("v1")
    path = write(
        tmp_path / "vae.safetensors", {"encoder.down.0.block.0.conv1.weight": np.ones((1, 1, 3, 3), np.float32)}
    )
    with pytest.raises(CheckpointError, match=r"vae.safetensors.*decoder.conv_in.weight is missing"):
        convert.load(tensors, config=config, vae=path)
    path = write(tmp_path / "unet.safetensors", {"x": np.ones(1, np.float32)})
    with pytest.raises(CheckpointError, match=r"unet.safetensors: it was given for its autoencoder, and holds none"):
        convert.load(tensors, config=config, vae=path)


def test_other_tools_spellings_are_read():
    config, tensors = model("v1")
    want = convert.load(tensors, config=config)[1]
    text = "cond_stage_model.transformer.text_model."
    renamed = {name.replace(text, "cond_stage_model.transformer."): array for name, array in tensors.items()}
    assert leaves_equal(convert.load(renamed, config=config)[1], want)
    matrices = {
        name: array[:, :, 0, 0] if name.endswith(("proj_in.weight", "attn_1.q.weight")) else array
        for name, array in tensors.items()
    }
    assert leaves_equal(convert.load(matrices, config=config)[1], want)
    both = tensors | renamed  # as merging tools write them: a copy is harmless, another tensor is not
    assert leaves_equal(convert.load(both, config=config)[1], want)
    other = text.replace("text_model.", "") + "final_layer_norm.bias"
    with pytest.raises(CheckpointError, match=f"with 1 difference: .*{other}.* name one tensor and differ"):
        convert.load(both | {other: both[other] + 1}, config=config)


def test_old_diffusers_attention_names_are_read(tmp_path):
    config, tensors = model("v1")
    convert.convert(write(tmp_path / "a.safetensors", tensors), tmp_path / "new", to="diffusers", config=config)
    vae = convert.read(tmp_path / "new" / "vae")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, array in vae.items():
        for new, before in old.items():
            if ".attentions.0." in name:
                name = name.replace(f".{new}.", f".{before}.")
        renamed[name] = np.array(array)
    write(tmp_path / "new" / "vae" / "diffusion_pytorch_model.safetensors", renamed)
    assert leaves_equal(convert.load(tmp_path / "new")[1], convert.load(tensors, config=config)[1])


@pytest.mark.parametrize(
    ("metadata", "markers", "want"),
    [
        ({"modelspec.prediction_type": "v"}, (), "v"),
        ({"modelspec.prediction_type": "epsilon"}, (), "epsilon"),
        ({"modelspec.predict_key": "v"}, (), "v"),
        ({"ss_v_parameterization": "True"}, (), "v"),
        ({"ss_v_parameterization": "False"}, (), "epsilon"),
        ({"modelspec.architecture": "stable-diffusion-v2-768-v"}, (), "v"),
        ({"modelspec.architecture": "stable-diffusion-v2-512"}, (), "epsilon"),
        ({}, ("v_pred",), "v"),
    ],
)
def test_prediction_follows_what_the_file_says(metadata, markers, want):
    decision = prediction.stated(metadata, markers)
    assert decision.prediction == want
    chosen = prediction.with_prediction(configs.get("sd2_base"), decision)
    assert chosen == configs.get("sd2_v" if want == "v" else "sd2_base")


def test_prediction_of_a_whole_file(tmp_path):
    config, tensors = model("v1")
    marked = tensors | {"v_pred": np.zeros(0, np.float32), "ztsnr": np.zeros(0, np.float32)}
    config_key = {"sdjax.config": json.dumps(config.to_dict())}
    read, _ = convert.load(write(tmp_path / "a.safetensors", marked, config_key))
    assert (read.schedule.prediction, read.schedule.zero_terminal_snr) == ("v", True)
    found = convert.load_model(tmp_path / "a.safetensors", prediction="epsilon")
    assert (found.config.schedule.prediction, found.config.schedule.zero_terminal_snr) == ("epsilon", False)
    assert "marker tensor v_pred says v" in found.report.notices[0]
    both = config_key | {"modelspec.predict_key": "epsilon"}
    with pytest.raises(CheckpointError, match="contradicts itself about what it predicts"):
        convert.load(write(tmp_path / "b.safetensors", marked, both))
    read, _ = convert.load(tmp_path / "b.safetensors", prediction="v")  # as the message advises
    assert read.schedule.prediction == "v"
    with pytest.raises(ValueError, match="prediction is one of epsilon, v, x0; got 'eps'"):
        convert.load(tensors, config=config, prediction="eps")


@pytest.mark.parametrize(("extra", "name"), [("parameterization: v", "sd2_v"), ("{}", "sd2_base")])
def test_an_ldm_yaml_describes_the_release(extra, name, tmp_path):
    path = tmp_path / "v2.yaml"
    path.write_text(YAML.format(extra="" if extra == "{}" else extra))
    assert ldm_config.read_ldm_yaml(path) == configs.get(name)


def test_a_yaml_beside_the_file_is_found(tmp_path):
    config, tensors = model("v2_v")
    path = write(tmp_path / "model.safetensors", tensors)
    (tmp_path / "model.yaml").write_text(YAML.format(extra="parameterization: v"))
    with pytest.raises(CheckpointError, match=r"does not hold the model that .*model.yaml describes"):
        convert.load(path)  # it describes the full size
    (tmp_path / "model.yaml").write_text("a: [")
    with pytest.raises(CheckpointError, match="its YAML cannot be read"):
        convert.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("ldm.models.diffusion.ddpm.LatentDiffusion", "os.system"), "model.target is 'os.system'; known are"),
        (("FrozenOpenCLIPEmbedder", "Evil"), "cond_stage_config.target is"),
        (("penultimate", "first"), "'last' or 'penultimate'"),
        (("in_channels: 4", "in_channels: x"), "in_channels is a positive whole number; got 'x'"),
        (("use_spatial_transformer: true", "use_spatial_transformer: false"), "use_spatial_transformer is true"),
        (("parameterization: v", "parameterization: w"), "parameterization is eps, v, x0; got 'w'"),
        (("ldm.models", "!!python/object/apply:os.system [x]"), "YAML cannot be read"),
    ],
)
def test_a_yaml_is_data(change, message, tmp_path):
    path = tmp_path / "v2.yaml"
    path.write_text(YAML.format(extra="parameterization: v").replace(*change))
    with pytest.raises(CheckpointError, match=message):
        convert.load({}, config=path)


def test_a_type_is_asked_for_or_kept():
    config, tensors = model("v1")
    assert {a.dtype.name for a in jax.tree.leaves(convert.load(tensors, config=config)[1])} == {"float32"}
    _, half = convert.load(tensors, config=config, dtype="bfloat16")
    assert {a.dtype.name for a in jax.tree.leaves(half)} == {"bfloat16"}
    name = UNET + "out.2.bias"
    assert np.array_equal(half["unet"]["conv_out"]["bias"], tensors[name].astype(ml_dtypes.bfloat16))
    with pytest.raises(ValueError, match="dtype is one of float32, bfloat16, float16; got 'int8'"):
        convert.load(tensors, config=config, dtype="int8")
    integers = tensors | {name: tensors[name].astype(np.int32)}
    with pytest.raises(CheckpointError, match="out.2.bias' holds int32 numbers"):
        convert.load(integers, config=config)


def test_nothing_is_taken_on_trust_from_a_native_folder(tmp_path):
    config, tensors = model("v1")
    convert.convert(write(tmp_path / "a.safetensors", tensors), tmp_path / "native", config=config)
    text = (tmp_path / "native" / "config.json").read_text()
    for before, after, message in (
        ('"context_dim": 64', '"context_dim": 65', "context_dim = 65"),
        ('"num_res_blocks": 2', '"num_res_blocks": 3', "does not hold the model that config.json describes"),
        ('"name": "custom"', '"colour": 1', "has no field colour"),
    ):
        (tmp_path / "native" / "config.json").write_text(text.replace(before, after))
        with pytest.raises(CheckpointError, match=message):
            convert.load(tmp_path / "native")
    files = text.replace('"model": {', '"files": {"model_index.json": {}, "../../evil.json": {"a": 1}}, "model": {')
    (tmp_path / "native" / "config.json").write_text(files)
    convert.convert(tmp_path / "native", tmp_path / "deep" / "er" / "out", to="diffusers")
    assert not list(tmp_path.rglob("evil.json"))


def test_the_network_is_asked_only_where_nothing_else_tells(monkeypatch):
    config, tensors = model("v2_v")
    config = dataclasses.replace(config, name="sd2_base")
    calls = []
    monkeypatch.setattr("sdjax.convert.describe.detection.detect", lambda shapes: config)
    monkeypatch.setattr("sdjax.convert.describe.probe.probe", lambda *args: calls.append(1) or ("v", 0.07))
    found = convert.load_model(tensors)
    assert found.report.prediction_origin == "a probe of the network"
    assert found.config.schedule.prediction == "v"
    assert "say prediction=v to skip the question" in found.report.notices[0]
    convert.load_model(tensors, prediction="epsilon")
    convert.load_model(tensors | {"v_pred": np.zeros(0, np.float32)})
    assert calls == [1]


def test_parameters_are_handed_to_jax_without_a_copy(tmp_path):
    config, tensors = model("v1")
    _, params = convert.load(tensors, config=config)
    kernel = params["unet"]["conv_in"]["kernel"]
    assert jax.device_put(kernel).unsafe_buffer_pointer() == kernel.ctypes.data
    assert not kernel.flags.writeable  # JAX would see the change
    convert.convert(write(tmp_path / "a.safetensors", tensors), tmp_path / "native", config=config)
    mapped = jax.tree.leaves(convert.load(tmp_path / "native")[1])
    in_place = sum(array.nbytes for array in mapped if array.ctypes.data % 64 == 0)
    assert in_place > 0.999 * sum(array.nbytes for array in mapped)


def test_a_description_that_contradicts_the_file_is_said(tmp_path):
    config, tensors = model("v2_v")
    path = write(tmp_path / "a.safetensors", tensors, {"modelspec.prediction_type": "epsilon"})
    found = convert.load_model(path, config=config)
    assert found.config.schedule.prediction == "v"
    assert found.report.notices == (
        "config= says that it predicts v, the metadata's modelspec.prediction_type epsilon",
    )
