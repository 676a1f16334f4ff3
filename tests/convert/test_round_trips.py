"""Any layout into any other and back: every tensor's bytes, metadata, licence, what belongs to other tools."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest
from small_models import FAMILIES, model, write
from trips import check_round_trips, equal

from sdjax import convert
from sdjax.config import ModelConfig
from sdjax.convert.checkpoint import licence_files
from sdjax.convert.names import naming
from sdjax.prompts.tokenizer import Tokenizer


@pytest.mark.few(1)
@pytest.mark.parametrize("family", FAMILIES)
def test_ldm_to_native_and_diffusers_and_back_is_byte_exact(family, tmp_path):
    config, tensors = model(family)
    check_round_trips(tmp_path, tensors, config)


def test_mixed_types_keep_their_bytes(tmp_path):
    config, tensors = model("v2_v")
    kinds = np.float16, np.float32, ml_dtypes.bfloat16
    tensors = {
        name: array.astype(kinds[sum(name.rpartition(".")[0].encode()) % 3]) if array.ndim != 3 else array
        for name, array in tensors.items()
    }
    for stem in ("weight", "bias"):  # what is fused in one file is split in the others: one type each
        for block in range(3):
            name = f"cond_stage_model.model.transformer.resblocks.{block}.attn.in_proj_{stem}"
            tensors[name] = tensors[name].astype(np.float16)
    start = write(tmp_path / "a.safetensors", tensors)
    convert.convert(start, tmp_path / "native", config=config)
    convert.convert(tmp_path / "native", tmp_path / "diffusers", to="diffusers")
    convert.convert(tmp_path / "diffusers", tmp_path / "b.safetensors")
    assert equal(start, tmp_path / "b.safetensors")


@pytest.mark.slow
def test_both_sets_of_weights_survive_when_asked_for(tmp_path):
    config, tensors = model("v1")
    tensors = dict(tensors)
    rng = np.random.default_rng(0)
    for name in [name for name in tensors if name.startswith("model.diffusion_model.")]:
        tensors[naming.ema_name(name)] = rng.normal(size=tensors[name].shape).astype(np.float32)
    tensors |= {"model_ema.decay": np.float32(0.9999), "model_ema.num_updates": np.int32(470000)}
    start = write(tmp_path / "a.safetensors", tensors)
    for way in ({"ema": "auto"}, {"ema": "no"}):
        native, back = tmp_path / f"native-{way['ema']}", tmp_path / f"{way['ema']}.safetensors"
        convert.convert(start, native, config=config, ema_names=True, **way)
        convert.convert(native, back, ema_names=True)
        assert equal(start, back)
    convert.convert(start, tmp_path / "one.safetensors", config=config)
    only = convert.read(tmp_path / "one.safetensors")
    assert not [name for name in only if name.startswith("model_ema")]
    name = "model.diffusion_model.out.2.weight"
    assert np.array_equal(only[name], tensors[naming.ema_name(name)])  # the averages are what is used


def test_metadata_and_licence_go_along(tmp_path):
    config, tensors = model("v1")
    (tmp_path / "in").mkdir()
    start = write(
        tmp_path / "in" / "a.safetensors", tensors, {"modelspec.author": "Ada", "ss_tag": '{"cat": 1}', "format": "pt"}
    )
    (tmp_path / "in" / "LICENSE.md").write_text("Use it well.\n\nAnd kindly.\n")
    (tmp_path / "in" / "notes.txt").write_text("not a licence")
    convert.convert(start, tmp_path / "native", config=config)
    convert.convert(tmp_path / "native", tmp_path / "diffusers", to="diffusers")
    convert.convert(tmp_path / "diffusers", tmp_path / "out" / "b.safetensors")
    convert.convert(tmp_path / "out" / "b.safetensors", tmp_path / "native2")
    for folder in ("native", "diffusers", "native2"):
        assert licence_files(tmp_path / folder) == {"LICENSE.md": "Use it well.\n\nAnd kindly.\n"}
    metadata = convert.read(tmp_path / "out" / "b.safetensors").metadata
    assert metadata["modelspec.author"] == "Ada"
    assert metadata["ss_tag"] == '{"cat": 1}'
    assert metadata["modelspec.license"] == "Use it well."
    assert metadata["modelspec.sai_model_spec"] == "1.0.0"
    assert metadata["modelspec.prediction_type"] == "epsilon"
    inside = convert.read(tmp_path / "native2").metadata
    assert inside["modelspec.author"] == "Ada"


def test_a_folder_keeps_what_other_tools_need_of_it(tmp_path):
    config, tensors = model("v1")
    convert.convert(write(tmp_path / "a.safetensors", tensors), tmp_path / "diffusers", to="diffusers", config=config)
    safety = tmp_path / "diffusers" / "safety_checker"
    safety.mkdir()
    (safety / "config.json").write_text('{"architectures": ["StableDiffusionSafetyChecker"]}')
    write(safety / "model.safetensors", {"concept_embeds": np.ones((17, 8), np.float16)})
    index = json.loads((tmp_path / "diffusers" / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (tmp_path / "diffusers" / "model_index.json").write_text(json.dumps(index))
    (tmp_path / "diffusers" / "feature_extractor").mkdir()
    (tmp_path / "diffusers" / "feature_extractor" / "preprocessor_config.json").write_text('{"size": 224}')
    convert.convert(tmp_path / "diffusers", tmp_path / "native")
    convert.convert(tmp_path / "native", tmp_path / "diffusers2", to="diffusers")
    assert equal(tmp_path / "diffusers", tmp_path / "diffusers2")
    report = convert.convert(tmp_path / "diffusers", tmp_path / "b.safetensors")
    assert report.notices == ("a single file has no place for safety_checker; a folder keeps them",)
    for name in ("model_index.json", "safety_checker/config.json", "feature_extractor/preprocessor_config.json",
                 "unet/config.json", "scheduler/scheduler_config.json"):  # fmt: skip
        first, second = (json.loads((tmp_path / f / name).read_text()) for f in ("diffusers", "diffusers2"))
        assert first == second


def test_a_dtype_changes_parameters_and_no_table(tmp_path):
    config, tensors = model("v1")
    start = write(tmp_path / "a.safetensors", tensors)
    convert.convert(start, tmp_path / "b.safetensors", config=config, dtype="bfloat16")
    half = convert.read(tmp_path / "b.safetensors")
    name = "model.diffusion_model.out.2.weight"
    assert np.array_equal(half[name], tensors[name].astype(ml_dtypes.bfloat16))
    assert half.dtypes["alphas_cumprod"] == np.float32
    assert half.dtypes["cond_stage_model.transformer.text_model.embeddings.position_ids"] == np.int64


def test_a_manifest_lists_what_was_written(tmp_path):
    config, tensors = model("v1")
    start = write(tmp_path / "a.safetensors", tensors)
    convert.convert(start, tmp_path / "b.safetensors", config=config, manifest=tmp_path / "b.json")
    assert json.loads((tmp_path / "b.json").read_text()) == convert.manifest(convert.read(start))


def test_parameters_in_memory_are_saved_and_read_again(tmp_path):
    config, tensors = model("v1")
    _, params = convert.load(tensors, config=config)
    for to, target in (("native", "folder"), ("diffusers", "folder2"), ("auto", "file.safetensors")):
        convert.save(config, params, tmp_path / target, to=to)
        again, read = convert.load(tmp_path / target)
        assert (again.unet, again.vae, again.text, again.schedule) == (
            config.unet, config.vae, config.text, config.schedule,
        )  # fmt: skip
        assert jax.tree.all(jax.tree.map(np.array_equal, params, read))
    with pytest.raises(ValueError, match=r"unet/conv_in/kernel is \[3, 3, 4, 320\], got \[3, 3, 4, 32\]"):
        convert.save(ModelConfig("sd1"), params, tmp_path / "other")


def test_v2s_folder_pads_with_its_own_token(tmp_path):
    config, tensors = model("v2_base")
    convert.convert(write(tmp_path / "a.safetensors", tensors), tmp_path / "d", to="diffusers", config=config)
    assert json.loads((tmp_path / "d/tokenizer/tokenizer_config.json").read_text())["pad_token"] == "!"
    assert convert.load(tmp_path / "d")[0].text.pad_token_id == 0
    assert Tokenizer.load(tmp_path / "d/tokenizer").encode("a cat") == Tokenizer().encode("a cat")
