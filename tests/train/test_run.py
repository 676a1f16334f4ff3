"""Whole trainings of a small model on pictures, as `sdjax train` runs them."""

import dataclasses
import functools
import importlib
import itertools
import json
import types

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from models_to_train import MODEL, TINY, write_model
from PIL import Image

import sdjax
from sdjax.config import ConfigError, DepthConfig, VisionConfig
from sdjax.configs import finetune
from sdjax.convert import CheckpointError, load_model
from sdjax.description import build
from sdjax.evaluate.benchmark import random_model
from sdjax.loading.run_folder import trained
from sdjax.loading.trainable import by_path, lay_over
from sdjax.nn import TextEncoder
from sdjax.prompts.added_words import AddedWords
from sdjax.scripts.main import main
from sdjax.scripts.train import TRAININGS
from sdjax.tasks import text_to_image
from sdjax.train.builtin import vocabulary
from sdjax.train.config import SamplesConfig, TrainConfig
from sdjax.train.run import Run
from sdjax.train.samples import SampleMaker

ESTIMATOR = DepthConfig(
    image_size=64, stem_width=8, stage_widths=(32, 64, 96), stage_depths=(1, 1, 1), norm_groups=4, width=32, layers=2,
    heads=4, taps=(0, 1), neck_widths=(24, 40), features=16,
)  # fmt: skip
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 60, 220), "grey": (128, 128, 128)}


@pytest.fixture(scope="module", autouse=True)
def programs(tmp_path_factory):
    """Runs of this module compile what they have in common once."""
    compilation_cache.reset_cache()
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("programs")))
    yield
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of sixteen pictures of 64 x 64 with captions; and in it a model with random weights that knows them."""
    folder = tmp_path_factory.mktemp("set")
    rng = np.random.default_rng(0)
    for i in range(16):
        name, colour = list(COLOURS.items())[i % 4]
        pixels = np.clip(np.array(colour) + rng.normal(0, 8, (64, 64, 1)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
        (folder / f"{i:02d}.txt").write_text(f"a {name} square")
    captions = [f"a {name} square on a wall" for name in COLOURS]
    tokenizer = vocabulary.learn(iter(captions * 20), MODEL.text.vocab_size)
    for model in (MODEL, TINY):
        write_model(model, random_model(model, "float32").params, tokenizer, folder / model.name)
    return folder


def settings(pictures, model="tiny", **changes):
    """Returns a configuration for a model of the folder; names of changes have __ for a dot."""
    config = finetune.get_config().to_dict()
    config["model"]["path"] = str(pictures / model)
    config["data"] |= {"parts": [{"source": {"folder": str(pictures)}}], "buckets": False}
    config["optim"] |= {"steps": 6, "learning_rate": 1e-3, "warmup": 0}
    config |= {"batch_size": 8}
    config["log"] |= {"every": 1, "tensorboard": False}
    for name, value in changes.items():
        *outer, last = name.split("__")
        place = config
        for key in outer:
            place = place[key]
        place[last] = value
    return build(TrainConfig, config)


def run(folder, config, devices=1, say=lambda text: None):
    """Trains on the first devices, and returns the state and the losses of all steps."""
    state = Run(config, folder, say, devices=jax.devices()[:devices]).train()
    return state, losses(folder)


def losses(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def test_a_run_learns_resumes_exactly_and_gives_a_model(pictures, tmp_path):
    whole, seen = run(tmp_path / "whole", settings(pictures))
    assert sorted(seen) == [1, 2, 3, 4, 5, 6]
    run(tmp_path / "parts", settings(pictures, optim__steps=4))
    said = []
    resumed, _ = run(tmp_path / "parts", settings(pictures), say=said.append)
    assert any("optim.steps was 4 when this run was started, and is 6 now" in text for text in said)
    assert losses(tmp_path / "parts") == seen
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(resumed.params), strict=True):
        np.testing.assert_array_equal(a, b)

    # what was trained is what is loaded
    pipe = sdjax.load(tmp_path / "whole", dtype="float32")
    assert "step 6" in pipe.notices[0]
    kernel = pipe.params["unet"]["conv_out"]["kernel"]
    np.testing.assert_array_equal(kernel, whole.ema_params["unet"]["conv_out"]["kernel"])
    step, raw = trained(tmp_path / "whole", ema="no")
    assert step == 6
    np.testing.assert_array_equal(raw.params["unet"]["conv_out"]["kernel"], whole.params["unet"]["conv_out"]["kernel"])
    with pytest.raises(ValueError, match="prediction has no effect on a training"):
        sdjax.load(tmp_path / "whole", prediction="v")

    # a run that has taken all its steps says so, and takes none
    said.clear()
    again, _ = run(tmp_path / "whole", settings(pictures, optim__steps=5), say=said.append)
    assert int(again.step) == 6
    assert any("finished: it has taken 6 steps, and optim.steps is 5. To train on, set" in text for text in said)

    # another model, or what makes its state another, is refused in this folder
    named = "another train and another seed: train was .*unet.* when .* and is .*text.* now; seed was 0 .* is 3 now"
    with pytest.raises(ConfigError, match=named):
        run(tmp_path / "whole", settings(pictures, train=["unet", "text"], seed=3))


def test_samples_are_made_with_their_options(monkeypatch):
    seen = []
    monkeypatch.setattr(
        text_to_image,
        "text_to_image",
        lambda pipe, prompts, **options: seen.append((prompts, options)) or [np.zeros((4, 4, 3), np.uint8)],
    )
    config = SamplesConfig(("a", "b"), num_steps=3, seed=5, options={"sampler": "euler", "negative_prompt": ["c", "d"]})
    SampleMaker(config, types.SimpleNamespace(config=TINY), None, "float32").make(types.SimpleNamespace(config=TINY))
    ((prompts, options),) = seen
    assert prompts == ["a", "b"]
    expected = {"num_steps": 3, "seed": 5, "sampler": "euler", "negative_prompt": ["c", "d"]}
    assert {name: options[name] for name in expected} == expected


def nested(path, leaf):
    return functools.reduce(lambda inner, name: {name: inner}, reversed(path.split("/")), leaf)


def test_samples_know_the_words_that_are_learned(pictures):
    start, words = load_model(pictures / "tiny"), {"<sq>": 2}
    pipe = sdjax.load(pictures / "tiny", dtype="float32")
    prompts = ("a <sq> on a wall", "a red square")
    rows = 3.0 * np.eye(2, TINY.text.width, dtype=np.float32)
    tables = {path: leaf for path, leaf in by_path(start.params["text"]).items() if path.endswith("/embedding")}
    (path, table), *_ = (one for one in tables.items() if "token" in one[0])
    params = lay_over(nested(path.removesuffix("embedding") + "rows", rows), start.params["text"])
    told = dataclasses.replace(pipe, params={**pipe.params, "text": params})
    told = dataclasses.replace(told, tokenizer=AddedWords.to(pipe.tokenizer, words))
    with_word, plain = told.encode_prompt(prompts)
    np.testing.assert_allclose(plain, np.asarray(pipe.encode_prompt(["a red square"]))[0], atol=1e-5)
    # Where the word is said in the place of its rows, a table with them gives the same
    longer = np.concatenate([table, rows])
    ids = AddedWords.to(pipe.tokenizer, words)([prompts[0]], length=TINY.text.max_length)
    text = dataclasses.replace(TINY.text, vocab_size=len(longer))
    whole = lay_over(nested(path, longer), start.params["text"])
    np.testing.assert_allclose(with_word, TextEncoder(text).apply({"params": whole}, ids)[0], atol=1e-5)


def test_epochs_are_turned_into_steps(pictures, tmp_path):
    said = []
    config = settings(pictures, optim__epochs=3, data__flip=0.0)
    counted = Run(config, tmp_path, said.append).count_steps()
    assert (counted.optim.steps, counted.optim.epochs) == (6, None)  # sixteen pictures, eight at a time
    assert said == ["3 epochs of 2 batches are 6 steps"]


@pytest.mark.slow
def test_another_learning_rate_or_number_of_steps_compiles_nothing(pictures, tmp_path, capsys):
    missed = []
    listen = lambda event, **_: missed.append(event) if event.endswith("cache_misses") else None  # noqa: E731
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    try:
        run(tmp_path / "first", settings(pictures, optim__steps=2))
        jax.monitoring.register_event_listener(listen)
        numbers = {
            "steps": 5, "learning_rate": 3e-4, "warmup": 2, "cooldown": 1, "weight_decay": 0.1, "clip": 0.5,
            "beta1": 0.8, "beta2": 0.9, "warmup_from": 0.5,
        }  # fmt: skip
        other = {f"optim__{name}": value for name, value in numbers.items()}
        run(tmp_path / "second", settings(pictures, **other, ema__decay=0.5, seed=7))
    finally:
        jax.monitoring.unregister_event_listener(listen)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    assert not missed
    lines = [json.loads(line) for line in (tmp_path / "second" / "log.jsonl").read_text().splitlines()]
    # half of it at first, all of it after two steps, and half-way down at the last
    np.testing.assert_allclose([line["learning_rate"] for line in lines], 3e-4 * np.array([0.5, 0.75, 1, 1, 1]))
    assert "compiling the program of the training step, for pictures of 16 x 16" in capsys.readouterr().err


@pytest.mark.slow
def test_a_folder_without_a_checkpoint_can_be_given_other_settings(pictures, tmp_path):
    with pytest.raises(CheckpointError):
        run(tmp_path, settings(pictures, "nowhere"))
    broken = settings(pictures, validation__data={"parts": [{"source": {"folder": "nowhere"}}]}, ema__decay=0.5)
    with pytest.raises(ValueError, match="nowhere"):
        run(tmp_path, broken)
    assert not list(tmp_path.iterdir())  # data is looked at before the start model is copied
    held_out = {"parts": [{"source": {"folder": str(pictures)}}], "crop": "centre"}
    config = settings(
        pictures, optim__steps=2, ema__host=True, validation__data=held_out, validation__every=1, validation__best=True,
        validation__examples=8, validation__timesteps=2, seed=3,
    )  # fmt: skip
    run(tmp_path, config)
    assert json.loads((tmp_path / "settings.json").read_text())["seed"] == 3
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    values = [line["validation/loss"] for line in lines if "validation/loss" in line]
    assert len(values) == 2
    best = json.loads((tmp_path / "checkpoints" / "best.json").read_text())
    assert best == {"step": 1 + int(np.argmin(values)), "metric": min(values)}
    with pytest.raises(ConfigError, match="another seed"):
        run(tmp_path, settings(pictures))


@pytest.mark.slow
@pytest.mark.parametrize("text", ["ids", "context"])
def test_a_run_on_a_cache_is_measured_on_pictures(pictures, tmp_path, text):
    flags = ["--model", str(pictures / "tiny"), "--folder", str(pictures), "--text", text, "--dtype", "float32"]
    assert main(["cache-latents", str(tmp_path / "cache"), *flags]) == 0
    held_out = {"parts": [{"source": {"folder": str(pictures)}}]}
    config = settings(
        pictures, data__parts=[], data__cached=[str(tmp_path / "cache")], optim__steps=2, validation__data=held_out,
        validation__every=1, validation__examples=8, validation__timesteps=2,
    )  # fmt: skip
    run(tmp_path / "run", config)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    measured = [line["validation/raw_loss"] for line in lines if "validation/raw_loss" in line]
    assert len(measured) == 2
    assert np.isfinite(measured).all()


@pytest.mark.slow
def test_devices_share_a_step_without_changing_it(pictures, tmp_path):
    changes = {"model": "small", "optim__steps": 3, "ema__host": True, "accumulate": 2}
    _, one = run(tmp_path / "one", settings(pictures, **changes))
    sharded = settings(pictures, **changes, parallel__fsdp=2, parallel__tensor=2, parallel__whole=1)
    state, eight = run(tmp_path / "eight", sharded, devices=8)
    assert eight == pytest.approx(one, rel=1e-5)
    kernel = state.params["unet"]["mid_block"]["attentions_0"]["transformer_blocks_0"]["attn1"]["to_q"]["kernel"]
    assert kernel.sharding.spec == jax.sharding.PartitionSpec("fsdp", "tensor")
    assert {shard.data.size for shard in kernel.addressable_shards} == {kernel.size // 4}
    average = jax.tree.leaves(state.ema_params)
    assert {leaf.sharding.memory_kind for leaf in average} == {"pinned_host"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "changes"),
    [(2, {}), (4, {}), (8, {}), (8, {"mode": "pmap"}), (8, {"fsdp": 8, "whole": 1}), (4, {"tensor": 2})],
)
def test_fifty_steps_on_other_devices_have_the_same_losses(pictures, tmp_path, devices, changes, fifty_steps):
    how = {f"parallel__{name}": value for name, value in changes.items()}
    _, seen = run(tmp_path / "run", settings(pictures, optim__steps=50, **how), devices=devices)
    assert seen == pytest.approx(fifty_steps, rel=1e-5)


@pytest.fixture(scope="module")
def fifty_steps(pictures, tmp_path_factory):
    return run(tmp_path_factory.mktemp("fifty") / "run", settings(pictures, optim__steps=50))[1]


@pytest.mark.slow
def test_a_run_goes_on_on_other_devices(pictures, tmp_path, fifty_steps):
    run(tmp_path / "run", settings(pictures, optim__steps=20), devices=8)
    _, seen = run(tmp_path / "run", settings(pictures, optim__steps=50), devices=2)
    assert seen == pytest.approx(fifty_steps, rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"train": ["vae"]}, "`autoencoder` says how an autoencoder is trained"),
        ({"train": ["clip"]}, 'train names "unet", "text" or both'),
        ({"batch_size": 6, "accumulate": 4}, "accumulate divides batch_size"),
        ({"optim__lr": 1e-4}, "config.optim has no field lr; it has steps"),
        ({"optim__steps": "many"}, "config.optim.steps is a int; got 'many'"),
        ({"objective__loss": "l3"}, "config.objective.loss is one of l2, l1, huber, pseudo_huber, smooth_l1; got 'l3'"),
        ({"data__parts": []}, "data names parts"),
        ({"parallel__mode": "pmap", "parallel__fsdp": 2}, 'use mode "jit"'),
        ({"ema__decay": 1.5}, "decay lies between 0 and 1"),
        ({"dtype": "float16"}, "use bfloat16"),
        ({"log__every": 0}, "log.every must be 1 or more; got 0"),
        ({"checkpoint__steps": 0}, "checkpoint.steps must be 1 or more"),
        ({"validation__best": True}, "validation.best keeps the state of the lowest loss of validation.data"),
        ({"model__tokenizer": "words"}, "model.tokenizer needs model.scratch"),
        ({"model__scratch": "sd1"}, "model.path has no effect when training from scratch"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_read(pictures, changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        settings(pictures, **changes)


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
@pytest.mark.parametrize("name", [*sorted(set(TRAININGS) - {"finetune"}), "text"])
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
