"""Networks that judge pictures: batches, what each gives, and what is refused."""

import functools

import jax
import numpy as np
import pytest

from sdjax.config import TextConfig, VisionConfig
from sdjax.convert import CheckpointError
from sdjax.evaluate import extractors, resizing
from sdjax.evaluate.extractors import EXTRACTORS, FILES, NetworkExtractor, load_extractor
from sdjax.evaluate.measures import MEASURES
from sdjax.nn.metrics.aesthetic import AestheticConfig
from sdjax.nn.metrics.clip_pair import ClipConfig
from sdjax.nn.networks import NETWORKS

CONFIG = ClipConfig(
    VisionConfig(image_size=14, patch_size=7, width=64, layers=1, heads=1, projection=64),
    TextConfig(width=64, layers=1, heads=1, max_length=8),
)
RNG = np.random.default_rng(2)
PICTURES = [RNG.integers(0, 256, (size, 20, 3), np.uint8) for size in (14, 20, 33, 20, 15)]
CAPTIONS = ["a cat", "a dog on a red sofa, in the evening light", "", "a tree", "one"]


def random_params(network, config):
    shapes, rng = NETWORKS[network].shapes(config), np.random.default_rng(0)
    return jax.tree.map(lambda leaf: np.float32(rng.standard_normal(leaf.shape) * 0.3), shapes)


@functools.cache
def pair(head="clip"):
    params = random_params("clip_pair", CONFIG)
    prepare = functools.partial(resizing.clip, size=14)
    return NetworkExtractor("clip-l14", head, CONFIG, params, prepare, length=8)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(extractors, "BATCH", 2)


def test_a_row_is_its_picture_and_its_caption_alone():
    whole = pair()(PICTURES, CAPTIONS)
    assert {name: rows.shape for name, rows in whole.items()} == {"image": (5, 64), "text": (5, 64)}
    for place in (1, 4):
        alone = pair()(PICTURES[place : place + 1], CAPTIONS[place : place + 1])
        for name, rows in alone.items():
            np.testing.assert_allclose(rows[0], whole[name][place], rtol=1e-5, atol=1e-5)  # float32
    assert np.abs(whole["text"][0] - whole["text"][3]).max() > 0.01


def test_preference_is_the_scaled_cosine():
    found, scores = pair()(PICTURES, CAPTIONS), pair("preference")(PICTURES, CAPTIONS)
    image, text = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in found.values())
    want = np.exp(pair().params["logit_scale"]) * (image * text).sum(1, keepdims=True)
    np.testing.assert_allclose(scores["score"], want, rtol=1e-4, atol=1e-5)


def test_aesthetic_score_is_linear_in_the_embeddings_direction():
    predictor = AestheticConfig(64)
    params = {"vision": pair().params["vision"], "predictor": random_params("aesthetic", predictor)}
    extract = NetworkExtractor("aesthetic", "aesthetic", (CONFIG.vision, predictor), params, pair().prepare)
    x = pair()(PICTURES[:2], CAPTIONS[:2])["image"].astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    for place in (0, 2, 4, 6, 7):
        layer = params["predictor"][f"layers_{place}"]
        x = x @ layer["kernel"] + layer["bias"]
    np.testing.assert_allclose(extract(PICTURES[:2], CAPTIONS[:2])["score"], x, rtol=1e-4)


def test_captions_of_another_number_and_damaged_networks_are_refused():
    for pictures, captions in ((PICTURES, CAPTIONS[:4]), ([], [])):
        with pytest.raises(ValueError, match="every picture has a caption"):
            pair()(pictures, captions)
    params = {**pair().params, "logit_scale": np.float32("nan")}
    broken = NetworkExtractor("pickscore", "preference", CONFIG, params, pair().prepare, length=8)
    with pytest.raises(ValueError, match=r"PickScore gives features \(score\) that are not finite"):
        broken(PICTURES, CAPTIONS)


def test_identity_is_that_of_the_parameters():
    other = NetworkExtractor("clip-l14", "clip", CONFIG, {**pair().params, "logit_scale": np.float32(1)}, len)
    assert other.identity != pair().identity
    assert pair().identity.startswith("clip-l14 ")


def test_tables_fit_together():
    assert {measure.extractor for measure in MEASURES.values()} >= EXTRACTORS.keys()
    assert {flag for kind in EXTRACTORS.values() for flag in kind.files} == FILES.keys()


@pytest.mark.parametrize("name", EXTRACTORS)
def test_missing_and_wrong_files_are_one_sentence(name, tmp_path):
    with pytest.raises(CheckpointError, match=f"needs a file that is not given: --{EXTRACTORS[name].files[0]} "):
        load_extractor(name, {})
    from safetensors.numpy import save_file

    save_file({"layers.9.weight": np.ones((2, 2), np.float32)}, tmp_path / "other.safetensors")
    files = dict.fromkeys(FILES, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"other\.safetensors: it was given for"):
        load_extractor(name, files)
    with pytest.raises(CheckpointError):
        load_extractor(name, dict.fromkeys(FILES, tmp_path / "none"))


def test_unknown_extractors_are_refused():
    with pytest.raises(ValueError, match="is one of inception, "):
        load_extractor("vgg", {})
