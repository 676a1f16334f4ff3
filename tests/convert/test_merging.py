"""Merging whole models: files in, a file out, its recipe, what is not merged, and what is refused."""

import json
import math

import numpy as np
import pytest
import small_models
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from sdjax import convert
from sdjax.convert import CheckpointError, MergeSettings
from sdjax.convert.merge.merging import merge_models, reproduce_merge
from sdjax.convert.merge.method import Chosen
from sdjax.convert.merge.ratios import Ratios, block_number
from sdjax.convert.merge.recipe import RECIPE_KEY, read_recipe
from sdjax.convert.merge.table import METHODS
from sdjax.convert.merge.task_vectors import draw_mask
from sdjax.scripts import merge

CONV_IN = "model.diffusion_model.input_blocks.0.0.weight"
VAE = "first_stage_model.decoder.conv_in.weight"
TEXT = "cond_stage_model.transformer.text_model.final_layer_norm.weight"
POSITIONS = "cond_stage_model.transformer.text_model.embeddings.position_ids"


def write(path, tensors, family="v1"):
    config = json.dumps(small_models.model(family)[0].to_dict())
    return small_models.write(path, tensors, {"sdjax.config": config})


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    tensors = small_models.model("v1")[1]
    out = []
    for i, name in enumerate("abc"):
        rng = np.random.default_rng(i)
        changed = {
            key: (array * np.float32(1 + 0.1 * i) + rng.normal(0, 0.01 * i, array.shape)).astype(np.float16)
            if array.dtype == np.float32 and key != "alphas_cumprod"
            else array + 0 * i
            for key, array in tensors.items()
        }
        changed[POSITIONS] = tensors[POSITIONS] + i
        out.append(write(folder / f"{name}.safetensors", changed))
    return out


def test_a_weighted_sum_of_float16_files_is_the_float32_sum_rounded_once(files, tmp_path) -> None:
    merge_models(files[:2], tmp_path / "m.safetensors", MergeSettings("weighted_sum", (0.3,)))
    a, b, made = (load_file(path) for path in (*files[:2], tmp_path / "m.safetensors"))
    for name in CONV_IN, TEXT:
        x, y = a[name].astype(np.float32), b[name].astype(np.float32)
        np.testing.assert_array_equal(made[name], ((1 - 0.3) * x + 0.3 * y).astype(np.float16))
    np.testing.assert_array_equal(made[VAE], a[VAE])  # never blended unless asked
    np.testing.assert_array_equal(made[POSITIONS], a[POSITIONS])
    np.testing.assert_array_equal(made["alphas_cumprod"], a["alphas_cumprod"])


def test_tensors_that_only_the_second_model_has_are_appended(files, tmp_path) -> None:
    b, more = load_file(files[1]), np.arange(3, dtype=np.float16)
    added = {"model.diffusion_model.added": more, "model_ema.decay": more[:1], "notes": more}
    path = write(tmp_path / "b.safetensors", {**b, **added})
    merge_models([files[0], path], tmp_path / "m.safetensors", MergeSettings("weighted_sum", (0.3,)))
    made = load_file(tmp_path / "m.safetensors")
    assert set(made) - set(load_file(files[0])) == {"model.diffusion_model.added"}
    np.testing.assert_array_equal(made["model.diffusion_model.added"], more)
    np.testing.assert_array_equal(made[POSITIONS], load_file(files[0])[POSITIONS])


def test_text_encoder_and_autoencoder_come_from_where_the_settings_say(files, tmp_path) -> None:
    settings = MergeSettings("weighted_sum", (0.5,), text_from="B", vae_from="merge")
    merge_models(files[:2], tmp_path / "m.safetensors", settings)
    a, b, made = (load_file(path) for path in (*files[:2], tmp_path / "m.safetensors"))
    np.testing.assert_array_equal(made[TEXT], b[TEXT])
    x, y = a[VAE].astype(np.float32), b[VAE].astype(np.float32)
    np.testing.assert_array_equal(made[VAE], (0.5 * x + 0.5 * y).astype(np.float16))


def test_a_recipe_gives_the_same_bits_again_from_renamed_files(files, tmp_path) -> None:
    out = tmp_path / "m.safetensors"
    merge_models(files, out, MergeSettings("dare_ties", (0.5, 0.4), density=0.5, seed=3,
                                           patterns=(("attn2", (0.1, 0.2)),)))  # fmt: skip
    folder = tmp_path / "renamed"
    folder.mkdir()
    for i, path in enumerate(files):
        (folder / f"x{i}.safetensors").write_bytes(path.read_bytes())
    recipe = reproduce_merge(out, [folder], tmp_path / "again.safetensors")
    assert recipe.settings.method == "dare_ties"
    assert load_file(out).keys() == load_file(tmp_path / "again.safetensors").keys()
    assert "dare_ties" in convert.inspect(out).text()
    with pytest.raises(CheckpointError, match=r"not found among --models.*c\.safetensors"):
        reproduce_merge(out, files[:2])
    tensors = load_file(out)
    tensors[CONV_IN] = tensors[CONV_IN] + np.float16(1)
    with safe_open(out, "np") as file:
        save_file(tensors, tmp_path / "changed.safetensors", file.metadata())
    with pytest.raises(CheckpointError, match="other numbers in 1 of"):
        reproduce_merge(tmp_path / "changed.safetensors", [folder])


def test_models_of_different_kinds_are_refused_and_nothing_is_written(files, tmp_path) -> None:
    other = write(tmp_path / "v2.safetensors", small_models.model("v2_base")[1], "v2_base")
    with pytest.raises(CheckpointError, match="different kinds"):
        merge_models([files[0], other], tmp_path / "m.safetensors", MergeSettings("slerp"))
    assert not (tmp_path / "m.safetensors").exists()


def test_not_a_number_in_a_model_is_refused_by_the_tensors_name(files, tmp_path) -> None:
    tensors = load_file(files[1])
    tensors[CONV_IN].flat[0] = np.nan
    bad = write(tmp_path / "bad.safetensors", tensors)
    with pytest.raises(CheckpointError, match="input_blocks.0.0.weight"):
        merge_models([files[0], bad], tmp_path / "m.safetensors", MergeSettings("weighted_sum"))
    assert not (tmp_path / "m.safetensors").exists()


@pytest.mark.parametrize("text", [
    "{", '{"format": 1}', '{"format": 2, "settings": {}, "models": [], "loras": [], "vae": null}', "[" * 9999,
    json.dumps({"format": 1, "settings": {"method": "weighted_sum", "patterns": [["(a+)+$", [0.5]]]}, "loras": [],
                "models": [{"name": "a", "bytes": 1, "sha256": "0" * 64}] * 2, "vae": None, "ema": "auto",
                "prediction": None, "dtype": None}),
])  # fmt: skip
def test_a_hostile_recipe_is_refused_by_a_sentence(text) -> None:
    with pytest.raises(CheckpointError, match="its recipe"):
        read_recipe({RECIPE_KEY: text})


@pytest.mark.parametrize("wrong", [
    {"method": "none"}, {"method": "slerp", "density": 0.5}, {"method": "ties", "density": 0}, {"ratios": (1,)},
    {"method": "ties", "sign": "odd"}, {"method": "ties", "density": math.nan},
])  # fmt: skip
def test_settings_that_do_not_fit_are_refused(wrong) -> None:
    with pytest.raises(ValueError):
        MergeSettings(**wrong)


def test_block_numbers_are_supermergers() -> None:
    unet = "model.diffusion_model."
    for name, number in {
        f"{unet}time_embed.0.weight": 1, f"{unet}input_blocks.11.0.in_layers.0.weight": 12,
        f"{unet}middle_block.1.norm.weight": 13, f"{unet}output_blocks.0.0.skip.weight": 14, f"{unet}out.2.bias": 25,
        TEXT: 0, VAE: 0,
    }.items():  # fmt: skip
        assert block_number(name) == number
    ratios = Ratios((0.5,), tuple(range(25)), (("attn2", (9.0,)),))
    assert ratios.at(TEXT) == (0.5,)
    assert ratios.at(f"{unet}out.2.bias") == (24,)
    assert ratios.at(f"{unet}input_blocks.1.1.attn2.to_k.weight") == (9.0,)


def test_slerp_of_orthogonal_tensors_stays_on_the_circle() -> None:
    a, b = np.float32([3, 0]), np.float32([0, 3])
    for t in 0.25, 0.5:
        out = METHODS["slerp"].merge(a, [b], [t], Chosen())
        np.testing.assert_allclose(
            out, 3 * np.float32([math.cos(t * math.pi / 2), math.sin(t * math.pi / 2)]), rtol=1e-6
        )


def test_drawn_masks_depend_on_the_seed_and_keep_the_density() -> None:
    one, again, other = (draw_mask(seed, 0, "x", (1000, 10), 0.3) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()
    assert abs(one.mean() - 0.3) < 0.02  # four standard deviations of 10,000 draws


def test_cosine_merging_keeps_a_where_models_are_equal_and_takes_b_at_ratio_one() -> None:
    a, b = np.float32([[1, 2], [3, 4]]), np.float32([[1, -2], [3, 5]])
    for name in "cosine_a", "cosine_b":
        np.testing.assert_allclose(METHODS[name].merge(a, [a], [0.0], Chosen()), a, rtol=1e-6)
        np.testing.assert_array_equal(METHODS[name].merge(a, [b], [1.0], Chosen()), b)


def test_the_command_offers_every_method():
    assert tuple(METHODS) == merge.METHODS
