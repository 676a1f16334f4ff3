"""Every setting of a run is always obeyed, or says what makes it matter."""

import dataclasses

import pytest

from sdjax.checks.notes import Note
from sdjax.description import build
from sdjax.scripts.main import main
from sdjax.scripts.train import TRAININGS, read_config
from sdjax.train.config import TrainConfig, note_settings, without_effect
from sdjax.train.objectives.autoencoder import AutoencoderObjective

# Settings that someone decided are always obeyed, or are refused together with others; a new one belongs here, or
# declares `needs`
ALWAYS = {
    "": "data optim model train trainable autoencoder batch_size accumulate dtype frozen_dtype remat ema guard "
    "parallel checkpoint validation samples log seed patience mlperf",
    "data": "parts cached captions side threads workers bad_limit",
    "optim": "name learning_rate warmup warmup_most decay cooldown beta1 beta2 weight_decay clip rates part_rates "
    "up_rate epochs",
    "model": "path scratch prediction ema vae depth vision noise_stats changes fresh tokenizer copy",
    "objective": "loss gamma debiased like_epsilon v_like timesteps offset_noise multires_noise perturbation dropout "
    "label_dropout masked holes kind",
    "autoencoder": "kl_weight perceptual_weight pixel_loss edge_weight logvar disc_factor kind",
    "trainable": "kind",
    "ema": "decay",
    "guard": "spike limit",
    "parallel": "mode data fsdp tensor",
    "checkpoint": "steps keep keep_every",
    "validation": "data best metrics",
    "samples": "prompts",
    "log": "every tensorboard peak_flops progress",
}


def described(*changes: str, name: str = "finetune") -> TrainConfig:
    return build(TrainConfig, read_config(name, changes))


def test_a_setting_is_always_obeyed_or_says_what_it_needs() -> None:
    config = dataclasses.replace(described(), train=("vae",), autoencoder=AutoencoderObjective())
    found = {"": config} | {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if dataclasses.is_dataclass(getattr(config, field.name))
    }
    for name, part in found.items():
        always = {field.name for field in dataclasses.fields(part) if "needs" not in field.metadata}
        assert always == set(ALWAYS[name].split()), name


WITHOUT = {
    "data.buckets=False": ["data.parts=()", "data.cached=('a',)"],
    "data.bucket_step=64": ["data.buckets=False"],
    "data.bucket_sides=(256, 512)": ["data.enlarge=False"],
    "data.enlarge=True": ["data.buckets=False"],
    "data.captions.keep=0": [],
    "data.flip=0.5": ["data.parts=()", "data.cached=('a',)"],
    "data.crop='random'": ["data.parts=()", "data.cached=('a',)"],
    "data.resample='area'": ["data.parts=()", "data.cached=('a',)"],
    "data.masks=False": ["data.parts=()", "data.cached=('a',)"],
    "ema.host=False": ["ema.decay=None"],
    "checkpoint.minutes=15.0": ["checkpoint.steps=5"],
    "validation.every=1000": [],
    "validation.examples=4": [],
    "validation.timesteps=4": [],
    "samples.every=1000": [],
    "samples.seed=0": [],
    "samples.first=True": [],
    "samples.options={}": [],
    "samples.mask='m.png'": [],
    "optim.warmup_from=0.1": ["optim.warmup=0"],
    "optim.final=0.5": [],
    "optim.steps=7": ["optim.epochs=2"],
    "optim.cycles=2": ["optim.decay='cosine'"],
    "optim.power=2.0": ["optim.decay='linear'"],
    "optim.decay_all=True": ["optim.weight_decay=0.0"],
    "objective.huber_delta=0.1": [],
    "objective.huber_schedule='snr'": ["objective.loss='l1'"],
    "objective.floor=0.0": [],
    "objective.offset_random=True": [],
    "objective.offset_adaptive=0.1": [],
    "objective.multires_discount=0.1": [],
    "objective.perturbation_random=False": [],
    "objective.unmasked=0.5": [],
    "objective.whole_holes=0.5": ["objective.holes='given'"],
    "parallel.rules=None": [],
    "parallel.whole=10": [],
    "guard.after=100": [],
}


@pytest.mark.parametrize("change", WITHOUT)
def test_set_without_effect_is_refused_even_at_its_default(change, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    changes = [text for one in (change, *WITHOUT[change]) for text in ("--set", one)]
    assert main(["train", "--config", "finetune", "--workdir", "run", *changes]) == 2
    err = capsys.readouterr().err
    assert f"--set {change.partition('=')[0]} has no effect" in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("change", ["remat='blocks'", "objective.dropout=0.1", "objective.loss='l1'",
                                    "autoencoder.disc_start=5"])  # fmt: skip
def test_what_an_autoencoders_training_ignores_is_refused(change, capsys) -> None:
    none = ["--set", "autoencoder.disc_factor=0.0"] * change.startswith("auto")
    assert main(["train", "--config", "autoencoder", "--set", change, *none]) == 2
    assert f"--set {change.partition('=')[0]} has no effect" in capsys.readouterr().err


def test_a_setting_twice_is_refused(capsys) -> None:
    assert main(["train", "--set", "seed=1", "--set", "seed=2"]) == 2
    assert "--set seed is given twice" in capsys.readouterr().err


@pytest.mark.parametrize("name", TRAININGS)
def test_our_own_configurations_hold_nothing_without_effect(name, recwarn) -> None:
    note_settings(described(name=name))
    assert not list(recwarn)


def test_from_python_it_is_a_note() -> None:
    with pytest.warns(Note, match="ema.host has no effect without a moving average"):
        note_settings(described("ema.host=True", "ema.decay=None"))
    assert "optim.final" in without_effect(described())
