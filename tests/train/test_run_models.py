"""Whole trainings of every configuration and of every kind of model, and one that learns pictures by heart."""

import dataclasses
import importlib
import itertools
import json

import jax
import numpy as np
import pytest
from models_to_train import MODEL, TINY, write_model
from PIL import Image
from whole_runs import COLOURS, run, settings

import sdjax
from sdjax.config import DepthConfig, VisionConfig
from sdjax.convert import load_model
from sdjax.description import build
from sdjax.evaluate.benchmark import random_model
from sdjax.loading.run_folder import trained
from sdjax.scripts.train import TRAININGS
from sdjax.train.builtin import vocabulary
from sdjax.train.config import TrainConfig

pytestmark = pytest.mark.usefixtures("programs")

ESTIMATOR = DepthConfig(
    image_size=64, stem_width=8, stage_widths=(32, 64, 96), stage_depths=(1, 1, 1), norm_groups=4, width=32, layers=2,
    heads=4, taps=(0, 1), neck_widths=(24, 40), features=16,
)  # fmt: skip


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    """A folder of eight pictures, each with a caption of its own; and in it a model that was never trained."""
    folder = tmp_path_factory.mktemp("eight")
    pairs = list(itertools.permutations(COLOURS, 2))
    for i, (first, second) in enumerate(pairs[:8]):
        pixels = np.empty((64, 64, 3), np.uint8)
        pixels[:, :32], pixels[:, 32:] = COLOURS[first], COLOURS[second]
        Image.fromarray(pixels).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"{first} {second}")
    pipe = random_model(MODEL, "float32")
    moments, channels = pipe.params["vae"]["quant_conv"], MODEL.vae.latent_channels
    # the draw from the posterior is what nothing can learn: it is next to the mean
    moments["kernel"][..., channels:] = 0
    moments["bias"][channels:] = -10
    tokenizer = vocabulary.learn(map(" ".join, pairs * 20), MODEL.text.vocab_size)
    write_model(MODEL, pipe.params, tokenizer, folder / "small")
    return folder


@pytest.mark.slow
def test_eight_pictures_are_learned_by_heart(eight, tmp_path):
    same = {"parts": [{"source": {"folder": str(eight)}}], "crop": "centre"}
    changes = {"optim__steps": 600, "optim__learning_rate": 3e-3, "optim__name": "muon", "optim__cooldown": 200,
               "train": ["unet", "text"], "ema__decay": 0.98, "objective__dropout": 0.0, "log__every": 100,
               "data__flip": 0.0, "validation__data": same, "validation__every": 300,
               "validation__examples": 8}  # fmt: skip
    run(tmp_path / "run", settings(eight, "small", **changes))
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    seen = {line["step"]: line for line in lines if "validation/loss" in line}
    assert sorted(seen) == [300, 600]
    # v's mean square lies between those of latent and noise, about 1; what is left is the network's lack of precision
    assert seen[600]["validation/loss"] < seen[300]["validation/loss"] < 0.2
    assert seen[600]["validation/loss"] < 0.05

    # what a caption gives is its picture, as the autoencoder shows it
    pipe = sdjax.load(tmp_path / "run", dtype="float32")
    paths = sorted(eight.glob("*.png"))
    captions = [path.with_suffix(".txt").read_text() for path in paths]
    known = sdjax.image_to_image(pipe, paths, captions, strength=0.0).astype(np.float32)
    made = sdjax.text_to_image(pipe, captions, guidance_scale=1.0).astype(np.float32)
    distances = np.abs(made[:, None] - known[None]).mean((2, 3, 4))
    assert (distances.argmin(1) == np.arange(8)).all()


def released(name, pictures):
    """Returns one of the configurations that sdjax brings, for the tiny model and two steps."""
    file = {"text": "finetune"}.get(name, name)
    config = importlib.import_module(f"sdjax.configs.{file}").get_config().to_dict()
    config["model"]["path"] = str(pictures / "tiny")
    config["optim"] |= {"steps": 2, "warmup": 0}
    config["data"] |= {"side": None, "buckets": False, "threads": 1}
    config["log"] |= {"every": 1, "tensorboard": False}
    config |= {"batch_size": 2, "accumulate": 1}
    folder = {"folder": str(pictures)}
    config["data"]["parts"] = [{"source": folder}]
    if name == "text":
        config["train"] = ["text"]
    if name == "dreambooth":
        config["data"]["parts"] = [
            {"source": folder, "where": "'red' in caption", "weight": 1.0, "loss_weight": 1.0},
            {"source": folder, "where": "'blue' in caption", "weight": 1.0, "loss_weight": 0.5},
        ]
    if name == "depth":
        wide = dataclasses.replace(TINY, unet=dataclasses.replace(TINY.unet, in_channels=5), depth=ESTIMATOR)
        tokenizer = load_model(pictures / "tiny").tokenizer()
        write_model(wide, random_model(wide, "float32").params, tokenizer, pictures / "estimator")
        config["model"]["depth"] = str(pictures / "estimator")
    if name == "autoencoder":
        config["autoencoder"] |= {"lpips": [], "perceptual_weight": 0.0, "disc_start": 1}
        config["data"]["side"] = 32  # the discriminator sees no less than 24
    return config


@pytest.mark.slow
@pytest.mark.parametrize("name", [*sorted(set(TRAININGS) - {"finetune", "mlperf_sd2"}), "text"])
def test_every_configuration_trains_what_it_says(pictures, tmp_path, name):
    config = build(TrainConfig, released(name, pictures))
    state, seen = run(tmp_path / "run", config)
    assert sorted(seen) == [1, 2]
    assert set(state.params) == {
        "dreambooth": {"unet", "text"}, "text": {"text"}, "autoencoder": {"vae", "discriminator"}
    }.get(name, {"unet"})  # fmt: skip
    _, model = trained(tmp_path / "run")
    assert set(model.params) == {"unet", "text", "vae"} | ({"depth"} if name == "depth" else set())
    assert model.config.unet.in_channels == {"inpainting": 9, "depth": 5}.get(name, 4)
    start = load_model(pictures / "tiny")
    for part in start.params:
        same = [
            np.array_equal(a, b)
            for a, b in zip(jax.tree.leaves(model.params[part]), jax.tree.leaves(start.params[part]))
        ]  # fmt: skip
        assert all(same) == (part not in config.train)
    pipe = sdjax.load(tmp_path / "run", dtype="float32")
    assert pipe.config == model.config


TOLD = {
    "upscaling": dataclasses.replace(
        TINY,
        unet=dataclasses.replace(TINY.unet, in_channels=7, num_classes=350),
        vae=dataclasses.replace(TINY.vae, channels=(8, 8, 8)),
    ),
    "unclip": dataclasses.replace(
        TINY,
        unet=dataclasses.replace(TINY.unet, label_dim=32),
        vision=VisionConfig(image_size=28, patch_size=14, width=32, layers=1, heads=2, projection=16),
        noise_stats=16,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", TOLD)
def test_models_that_see_more_than_words_are_trained_and_sample(pictures, tmp_path, kind):
    tokenizer = load_model(pictures / "tiny").tokenizer()
    write_model(TOLD[kind], random_model(TOLD[kind], "float32").params, tokenizer, tmp_path / "model")
    config = settings(pictures, model__path=str(tmp_path / "model"))
    state, seen = run(tmp_path / "run", config)
    assert sorted(seen) == [1, 2, 3, 4, 5, 6]
    assert all(np.isfinite(loss) and 0 < loss < 4 for loss in seen.values())
    assert set(state.params) == {"unet"}
    start, (_, model) = load_model(tmp_path / "model"), trained(tmp_path / "run")
    for part in start.params:
        pairs = zip(jax.tree.leaves(model.params[part]), jax.tree.leaves(start.params[part]), strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs) == (part != "unet")
    # What takes the label has gradients
    labels = (tree.params["unet"]["class_embedding"] for tree in (model, start))
    assert not any(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, labels), strict=True))
    pipe = sdjax.load(tmp_path / "run", dtype="float32")
    picture = np.asarray(Image.open(pictures / "00.png"))
    if kind == "upscaling":
        made = sdjax.upscale(pipe, picture, "a red square", num_steps=2)
        assert made.shape == (1, 256, 256, 3)
    else:
        made = sdjax.image_variations(pipe, picture, "a red square", num_steps=2, height=64, width=64)
        assert made.shape == (1, 64, 64, 3)
