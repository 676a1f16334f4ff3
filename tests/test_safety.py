"""The safety checker: the reference's scores, rounding and special care, its layouts, notices in flagged ones' place.

golden/safety.npz holds a small checker's scores by diffusers' StableDiffusionSafetyChecker.
"""

import jax.numpy as jnp
import numpy as np
import parity_towers
import pytest
import small_safety
from safetensors.numpy import save_file

from sdjax import convert, pictures
from sdjax.config import VisionConfig
from sdjax.convert import CheckpointError
from sdjax.nn.safety import adjusted
from sdjax.tasks import safety


@pytest.fixture(scope="module")
def case():
    """Returns (specification, tensors, arrays)."""
    return small_safety.checker()


def test_flags_and_scores_equal_diffusers(case):
    spec, tensors, arrays = case
    flags, concepts, special = parity_towers.safety(spec, tensors, arrays["pixels"])
    assert flags.tolist() == arrays["flags"].tolist()
    assert 0 < flags.sum() < len(flags)
    np.testing.assert_allclose(concepts, arrays["concept_scores"], atol=1e-6)  # rounded to 0.001 by both
    np.testing.assert_allclose(special, arrays["special_scores"], atol=1e-6)


def test_special_care_raises_what_follows_and_all_concepts():
    # 0.0004 rounds to 0 and is none; 0.0006 rounds to 0.001 and adds 0.01 to the special score behind it
    special = jnp.float32([[-0.5, 0.0006, -0.005], [-0.5, 0.0004, -0.005]])
    concepts = jnp.float32([[-0.005] * 17, [-0.005] * 17])
    scores = adjusted(concepts, special)
    np.testing.assert_allclose(scores.special, [[-0.5, 0.001, 0.005], [-0.5, 0.0, -0.005]], atol=1e-7)
    np.testing.assert_allclose(scores.concepts[:, 0], [0.005, -0.005], atol=1e-7)
    assert scores.flags.tolist() == [True, False]


def test_every_place_of_a_checker_is_read(case, tmp_path):
    spec, tensors, _ = case
    config = parity_towers.vision_config(spec)
    folder = small_safety.write(tmp_path / "pipe/safety_checker", *case[:2])
    for place in (folder, tmp_path / "pipe"):
        got, params = convert.load_safety_checker(place)
        assert got == config
        assert np.array_equal(params["concept_embeds"], tensors["concept_embeds"])
        kernel = params["vision_model"]["vision_model"]["encoder"]["layers_2"]["mlp"]["fc1"]["kernel"]
        assert np.array_equal(kernel, tensors["vision_model.vision_model.encoder.layers.2.mlp.fc1.weight"].T)
    # transformers 5 has one level less; old files have positions' numbers too
    flat = {name.replace("vision_model.vision_model.", "vision_model."): array for name, array in tensors.items()}
    save_file({**flat, "vision_model.embeddings.position_ids": np.arange(17)[None]}, folder / "model.safetensors")
    assert np.array_equal(convert.load_safety_checker(folder)[1]["concept_embeds"], tensors["concept_embeds"])
    assert safety.beside(tmp_path / "pipe") == folder
    assert safety.beside(tmp_path) is None


def test_what_is_no_checker_is_refused_by_name(case, tmp_path):
    with pytest.raises(CheckpointError, match="holds no safety checker"):
        convert.load_safety_checker({"weight": np.ones(3, np.float32)})
    broken = dict(case[1])
    del broken["visual_projection.weight"]
    # Without a config.json it is taken for the released size: of hundreds of differences the outermost are shown
    with pytest.raises(CheckpointError, match="visual_projection.weight is missing"):
        convert.load_safety_checker(broken)


def test_flagged_pictures_are_replaced_and_none_is_dropped(case, tmp_path):
    checker = safety.SafetyChecker.load(small_safety.write(tmp_path / "safety_checker", *case[:2]))
    rng = np.random.default_rng(0)
    given = [rng.integers(0, 256, size, np.uint8) for size in ((64, 96, 3), (80, 64, 3), (56, 56, 3))]
    verdict = checker.check(given)
    assert verdict.concepts.shape == (3, 17)
    # A threshold in the middle of the pictures' best concepts flags some of them
    best = verdict.concepts.max(1)
    params = {**checker.params}
    params["concept_embeds_weights"] = params["concept_embeds_weights"] + np.float32(np.median(best))
    checker = safety.SafetyChecker(checker.config, params)
    shown, verdict = checker.censor(given)
    assert 0 < verdict.flags.sum() < 3
    for before, after, flag in zip(given, shown, verdict.flags):
        assert after.shape == before.shape
        assert np.array_equal(after, pictures.notice(*before.shape[:2]) if flag else before)
    assert checker.check([]).flags.shape == (0,)


@pytest.mark.parametrize("size", [(64, 64), (512, 512), (64, 1024), (1024, 64), (1, 1)])
def test_a_notice_is_of_any_size_and_grey_with_letters(size):
    notice = pictures.notice(*size)
    assert notice.shape == (*size, 3)
    assert (notice[0, 0] == 128).all()
    if min(size) >= 64:
        assert (notice > 200).any()
        assert (notice[:, 0] == 128).all()  # the letters fit
        assert (notice[0] == 128).all()


@pytest.mark.torch
@pytest.mark.filterwarnings("default")
def test_a_folder_gives_diffusers_verdict(tmp_path):
    import torch
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPVisionConfig

    vision = CLIPVisionConfig(hidden_size=32, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
                              image_size=28, patch_size=14, projection_dim=16)  # fmt: skip
    torch.manual_seed(0)
    peer = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision.to_dict(), projection_dim=16))
    for name in "concept_embeds", "special_care_embeds", "concept_embeds_weights", "special_care_embeds_weights":
        getattr(peer, name).data.normal_(std=0.1)
    peer.save_pretrained(tmp_path / "safety_checker")
    checker = safety.SafetyChecker.load(tmp_path / "safety_checker")
    assert checker.config == VisionConfig(image_size=28, patch_size=14, width=32, layers=2, heads=2, projection=16)
    given = [np.random.default_rng(i).integers(0, 256, (28, 28, 3), np.uint8) for i in range(4)]
    from sdjax.pictures import preprocess

    pixels = np.moveaxis(preprocess.clip_pixels(given, 28, dialect="huggingface"), -1, 1)
    _, flags = peer.eval()(torch.from_numpy(pixels.copy()), [np.zeros(1)] * 4)
    assert checker.check(given).flags.tolist() == [bool(flag) for flag in flags]
