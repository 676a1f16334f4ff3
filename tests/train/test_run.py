"""Whole trainings of a small model on pictures, as `sdjax train` runs them."""

import json

import jax
import numpy as np
import pytest
from whole_runs import losses, run, settings

import sdjax
from sdjax.config import ConfigError
from sdjax.convert import CheckpointError
from sdjax.loading.run_folder import trained
from sdjax.scripts.main import main
from sdjax.train.run import Run

pytestmark = pytest.mark.usefixtures("programs")


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
