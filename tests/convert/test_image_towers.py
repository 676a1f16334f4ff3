"""The image tower and the embeddings' statistics beside unCLIP: every layout's bytes, files without, others' too."""

import dataclasses
import json

import jax
import numpy as np
import pickle_writer as pickles
import pytest
from checkpoint_writer import torch_zip
from safetensors.numpy import save_file
from small_models import write
from trips import check_round_trips, check_without

from sdjax import configs, convert
from sdjax.config import ConfigError, ModelConfig, TextConfig, UNetConfig, VAEConfig, VisionConfig
from sdjax.convert import CheckpointError
from sdjax.convert.describe import diffusers_config, vision_config
from sdjax.convert.describe.ldm_config import config_from_ldm

import reference

SMALL = VisionConfig(image_size=28, patch_size=14, width=48, layers=2, heads=3, projection=32, activation="gelu")
MODEL = ModelConfig(
    name="small",
    unet=UNetConfig(channels=(32,), heads=(2,), mid_heads=2, transformer_depth=(1,), self_attention=(True,),
                    num_res_blocks=1, context_dim=64, linear_projection=True, label_dim=64),
    vae=VAEConfig(channels=(32, 32), num_res_blocks=1),
    text=TextConfig(width=64, layers=1, heads=1, activation="gelu", pad_token_id=0),
    vision=SMALL,
    noise_stats=32,
)  # fmt: skip
TOWER = "embedder.model."
STATS = ("noise_augmentor.data_mean", "noise_augmentor.data_std")


def tensors(tower=True, stats=True):
    """Returns a single file's tensors, with what Stability's files hold beside them."""
    out = reference.fill_all(convert.tensor_shapes(MODEL, "ldm"))
    out["noise_augmentor.betas"] = np.linspace(0, 1, 1000, dtype=np.float32)
    out[TOWER + "logit_scale"] = np.float32([4.6])
    out[TOWER + "text_projection"] = reference.fill("text_projection", (64, 32))
    if not tower:
        out = {name: array for name, array in out.items() if not name.startswith(TOWER)}
    return {name: array for name, array in out.items() if stats or name not in STATS}


@pytest.mark.parametrize("stats", [True, False])
def test_every_layout_and_back_is_byte_exact(tmp_path, stats):
    check_round_trips(tmp_path, tensors(stats=stats), MODEL)
    assert not convert.load_model(tmp_path / "a.safetensors", MODEL).report.notices
    assert convert.load(tmp_path / "diffusers")[0] == MODEL


def test_a_file_without_statistics_has_mean_zero_and_deviation_one():
    model = convert.load_model(tensors(stats=False), MODEL)
    assert not model.report.notices  # OpenCLIP's tower, whose embeddings Stability left as they are
    assert np.array_equal(model.params["noise_stats"]["mean"], np.zeros((1, 32)))
    assert np.array_equal(model.params["noise_stats"]["std"], np.ones((1, 32)))
    openai = dataclasses.replace(MODEL, vision=dataclasses.replace(SMALL, activation="quick_gelu"))
    (notice,) = convert.load_model(tensors(stats=False), openai).report.notices
    assert "noise is put on embeddings as if they were 0 and 1" in notice


def test_statistics_come_from_stabilitys_file_or_diffusers_folder(tmp_path):
    mean, std = (np.random.default_rng(i).uniform(1, 2, 32).astype(np.float32) for i in range(2))
    (tmp_path / "stats.th").write_bytes(torch_zip(tuple(pickles.tensors({"mean": mean, "std": std}).values())))
    folder = tmp_path / "image_normalizer"
    folder.mkdir()
    save_file({"mean": mean[None], "std": std[None]}, folder / "diffusion_pytorch_model.safetensors")
    for given in (tmp_path / "stats.th", folder, {"data_mean": mean[None], "data_std": std[None]}):
        config, params = convert.load(tensors(stats=False), config=MODEL, noise_stats=given)
        assert config == MODEL
        assert np.array_equal(params["noise_stats"]["mean"], mean[None])
        assert np.array_equal(params["noise_stats"]["std"], std[None])
    with pytest.raises(CheckpointError, match=r"\[48\]; the model's image embeddings have 32 numbers"):
        convert.load_model(tensors(), MODEL, noise_stats={"mean": np.ones(48), "std": np.ones(48)})
    with pytest.raises(CheckpointError, match="holds none"):
        convert.load_model(tensors(), MODEL, noise_stats={"weight": mean})


def test_the_projection_is_not_transposed_and_fused_rows_are_queries_keys_and_values():
    stored = tensors()
    _, params = convert.load(stored, config=MODEL)
    assert np.array_equal(params["vision"]["visual_projection"]["kernel"], stored[TOWER + "visual.proj"])
    fused = stored[TOWER + "visual.transformer.resblocks.1.attn.in_proj_weight"]
    layer = params["vision"]["vision_model"]["encoder"]["layers_1"]["self_attn"]
    for name, rows in zip(("q_proj", "k_proj", "v_proj"), np.split(fused, 3)):
        assert np.array_equal(layer[name]["kernel"], rows.T)


def test_a_square_projection_is_not_transposed_either():
    square = dataclasses.replace(SMALL, width=32, heads=2)
    model = dataclasses.replace(MODEL, vision=square)
    shapes = convert.tensor_shapes(model, "ldm")
    stored = reference.fill_all(shapes)
    _, params = convert.load(stored, config=model)
    assert np.array_equal(params["vision"]["visual_projection"]["kernel"], stored[TOWER + "visual.proj"])


def test_a_model_without_a_tower_is_a_model_all_the_same(tmp_path):
    model = check_without("vision", "image_encoder", tmp_path, tensors(tower=False), MODEL)
    assert model.config == dataclasses.replace(MODEL, vision=None)
    assert model.report.notices == ("it has no image tower: embeddings of pictures have to be given",)


def test_a_tower_comes_from_another_file_where_that_is_wanted(tmp_path):
    whole = tensors()
    config, want = convert.load(whole, config=MODEL)
    openclip = {name.removeprefix(TOWER): a for name, a in whole.items() if name.startswith(TOWER)}
    convert.convert(write(tmp_path / "b.safetensors", whole), tmp_path / "d", to="diffusers", config=MODEL)
    for given in (openclip, tmp_path / "d/image_encoder", tmp_path / "d", tmp_path / "b.safetensors"):
        again, params = convert.load(tensors(tower=False), config=MODEL, vision=given)
        assert again == config
        assert jax.tree.all(jax.tree.map(np.array_equal, params, want))
        alone, tower = convert.load_vision(given, SMALL)
        assert alone == SMALL
        assert jax.tree.all(jax.tree.map(np.array_equal, tower, want["vision"]))
    assert convert.load_vision(tmp_path / "d/image_encoder")[0] == SMALL
    with pytest.raises(CheckpointError, match="give its description by config="):
        convert.load_vision(openclip)
    with pytest.raises(CheckpointError, match="holds none in OpenCLIP's or transformers' layout"):
        convert.load_vision({"encoder.weight": np.ones(3, np.float32)}, SMALL)


def test_a_whole_clip_model_of_transformers_gives_its_tower(tmp_path):
    convert.convert(write(tmp_path / "b.safetensors", tensors()), tmp_path / "d", to="diffusers", config=MODEL)
    inner = vision_config.transformers_file(SMALL)
    both = dict(convert.read(tmp_path / "d/image_encoder")) | {"text_model.embeddings.x": np.ones(3, np.float32)}
    folder = tmp_path / "clip"
    folder.mkdir()
    projection = inner.pop("projection_dim")
    (folder / "config.json").write_text(json.dumps({"vision_config": inner, "projection_dim": projection}))
    save_file(both | {"vision_model.embeddings.position_ids": np.arange(5)[None]}, folder / "model.safetensors")
    assert convert.load_vision(folder)[0] == SMALL


def test_half_a_tower_is_no_tower():
    broken = tensors()
    del broken[TOWER + "visual.ln_pre.bias"]
    with pytest.raises(CheckpointError, match=f"{TOWER}visual.ln_pre.bias is missing"):
        convert.load(broken, config=MODEL)
    head = TOWER + "visual.head.weight"  # a classifier of another use of the tower
    assert head in convert.load_model({**tensors(), head: np.ones(3, np.float32)}, config=MODEL).extras


def test_an_ldm_yaml_names_the_tower():
    base = "ldm.modules.encoders.modules."
    yaml = {"embedder_config": {"target": base + "FrozenOpenCLIPImageEmbedder"},
            "noise_aug_config": {"target": "x", "params": {"timestep_dim": 1024, "noise_schedule_config": {
                "timesteps": 1000, "beta_schedule": "squaredcos_cap_v2"}}}}  # fmt: skip
    unet = {"in_channels": 4, "out_channels": 4, "model_channels": 320, "attention_resolutions": [4, 2, 1],
            "num_res_blocks": 2, "channel_mult": [1, 2, 4, 4], "num_head_channels": 64, "use_spatial_transformer": True,
            "use_linear_in_transformer": True, "transformer_depth": 1, "context_dim": 1024,
            "num_classes": "sequential", "adm_in_channels": 2048}  # fmt: skip
    ddconfig = {"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128,
                "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}  # fmt: skip
    params = {
        **yaml, "linear_start": 0.00085, "linear_end": 0.012, "timesteps": 1000, "conditioning_key": "crossattn-adm",
        "scale_factor": 0.18215, "parameterization": "v", "unet_config": {"params": unet},
        "first_stage_config": {"params": {"embed_dim": 4, "ddconfig": ddconfig}},
        "cond_stage_config": {"target": base + "FrozenOpenCLIPEmbedder", "params": {"layer": "penultimate"}},
    }  # fmt: skip
    target = "ldm.models.diffusion.ddpm.ImageEmbeddingConditionedLatentDiffusion"
    assert config_from_ldm({"model": {"target": target, "params": params}}) == configs.get("sd2_unclip_h")
    params["embedder_config"] = {"target": base + "FrozenOpenCLIPImageEmbedder", "params": {"arch": "ViT-B-32"}}
    with pytest.raises(ConfigError, match="FrozenOpenCLIPImageEmbedder of ViT-H-14"):
        config_from_ldm({"model": {"target": target, "params": params}})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layer_norm_eps": 1e-6}, "layer_norm_eps is 1e-05"),
        ({"intermediate_size": 0}, "VisionConfig.mlp_width is positive, got 0"),
        ({"hidden_act": "silu"}, "activation is one of quick_gelu, gelu"),
        ({"image_size": 30}, "multiple of patch_size = 14, got 30"),
    ],
)
def test_other_towers_are_refused(fields, message):
    file = vision_config.transformers_file(SMALL)
    assert vision_config.vision_from_transformers(file) == SMALL
    with pytest.raises(ConfigError, match=message):
        vision_config.vision_from_transformers({**file, **fields})


def test_towers_with_another_mlp_width_are_described():
    file = vision_config.transformers_file(SMALL) | {"intermediate_size": 80}
    wide = dataclasses.replace(SMALL, mlp_width=80)
    assert vision_config.vision_from_transformers(file) == wide
    assert vision_config.transformers_file(wide) == file
    text = {"hidden_size": 48, "intermediate_size": 80, "num_attention_heads": 4, "num_hidden_layers": 2}
    tower = diffusers_config.text_from_transformers(text, {})
    assert tower.mlp_width == 80
    model = dataclasses.replace(MODEL, text=dataclasses.replace(tower, activation="gelu", width=MODEL.text.width))
    assert diffusers_config.diffusers_files(model)["text_encoder/config.json"]["intermediate_size"] == 80
    shapes = convert.tensor_shapes(dataclasses.replace(model, vision=None, noise_stats=None), "diffusers")
    assert shapes["text_encoder/text_model.encoder.layers.0.mlp.fc1.weight"] == (80, MODEL.text.width)


def test_embedding_and_label_belong_together():
    with pytest.raises(ConfigError, match="half as long as the UNet's label_dim = None, got 32"):
        ModelConfig(name="x", vision=SMALL)
    assert ModelConfig.from_dict(json.loads(json.dumps(MODEL.to_dict()))) == MODEL


@pytest.mark.torch
@pytest.mark.filterwarnings("default")
def test_diffusers_finds_everything_in_our_folder(tmp_path):
    import diffusers
    import transformers

    convert.convert(write(tmp_path / "a.safetensors", tensors()), tmp_path / "d", to="diffusers", config=MODEL)
    _, info = transformers.CLIPVisionModelWithProjection.from_pretrained(
        tmp_path / "d/image_encoder", output_loading_info=True
    )
    assert not [names for names in info.values() if names]
    pipe = diffusers.StableUnCLIPImg2ImgPipeline.from_pretrained(tmp_path / "d")
    assert np.array_equal(pipe.image_normalizer.mean.detach().numpy(), tensors()[STATS[0]])
    pixels = pipe.feature_extractor(np.zeros((96, 80, 3), np.uint8), return_tensors="pt").pixel_values
    assert pixels.shape == (1, 3, 28, 28)
