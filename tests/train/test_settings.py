"""Differences between the settings that a run was started and resumed with."""

import dataclasses
import json

import pytest

from sdjax.config import ConfigError
from sdjax.configs import finetune
from sdjax.description import build
from sdjax.train.checkpoints import settings
from sdjax.train.config import TrainConfig
from sdjax.train.run import finished


def config(**changed):
    values = finetune.get_config().to_dict()
    for name, value in changed.items():
        *outer, last = name.split("__")
        place = values
        for key in outer:
            place = place[key]
        place[last] = value
    return build(TrainConfig, values)


def differing(before, now):
    kept = before if isinstance(before, dict) else settings.stored(before)
    now = settings.with_own_warmup(now, kept)
    found = settings.changes(now, settings.stored(now), kept)
    settings.check(found, "runs/x", now.optim.name)
    return [str(change) for change in found]


def test_every_changed_setting_is_named_with_both_values():
    part = {"source": {"folder": "a"}}
    told = differing(
        config(),
        config(optim__learning_rate=2e-5, data__parts=[part], log__every=5, validation__data={"parts": [part]}),
    )
    assert len(told) == 4
    assert "optim.learning_rate was 1e-05 when this run was started, and is 2e-05 now" in told
    assert "log.every was 20 when this run was started, and is 5 now" in told
    assert any(line.startswith('data.parts was [{"source": {"folder": "pictures"}}]') for line in told)
    assert any(line.startswith("validation.data was null") for line in told)
    assert differing(config(), config()) == []


def test_a_run_that_is_made_longer_keeps_its_warm_up():
    short, long = config(optim__steps=100), config(optim__steps=5000)
    assert short.optim.warmup_steps == 10
    assert settings.with_own_warmup(long, settings.stored(short)).optim.warmup_steps == 10
    assert len(differing(short, long)) == 1  # the steps
    named = config(optim__steps=5000, optim__warmup=70)
    assert settings.with_own_warmup(named, settings.stored(short)) == named


def test_folders_of_before_a_setting_existed_go_on():
    old = settings.stored(config())
    del old["model"]["tokenizer"], old["log"], old["patience"]
    old["optim"]["warmup"] = 500  # as configurations had it
    assert differing(old, config()) == []
    assert len(differing(old, config(patience=60.0))) == 1


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"seed": 3}, "another seed: seed was 0 .*, and is 3 now. .*the old value .settings.json"),
        ({"model__path": "b.ckpt"}, 'another model.path: model.path was null .* is "b.ckpt" now'),
        ({"model__changes": {"schedule": {"prediction": "v"}}}, "another model.changes"),
        ({"optim__name": "lion"}, 'optim.name was "adamw"'),
        ({"ema__decay": None}, "ema.decay was 0.9999 .* is null now"),
        ({"optim__clip": None}, "optim.clip was 1.0"),
        ({"optim__rates": [["unet/conv_in", 0.0]]}, "optim.rates was \\[\\]"),
    ],
)
def test_what_the_state_depends_on_is_refused(changed, sentence):
    with pytest.raises(ConfigError, match=sentence):
        differing(config(), config(**changed))


def test_what_the_state_does_not_depend_on_goes_on():
    assert len(differing(config(), config(ema__decay=0.99, optim__clip=0.5, optim__weight_decay=0.0))) == 3
    rates = {"optim__rates": [["unet/conv_in", 0.5]]}
    assert len(differing(config(**rates), config(optim__rates=[["unet/conv_in", 0.25]]))) == 1


def test_long_values_are_cut():
    parts = [{"source": {"folder": "x" * 50}}] * 40
    (line,) = differing(config(), config(data__parts=parts))
    assert len(line) < 500


def test_settings_are_json_and_nothing_is_left_out():
    kept = settings.stored(config())
    assert json.loads(json.dumps(kept)) == kept
    assert set(kept) == {field.name for field in dataclasses.fields(TrainConfig)}


@pytest.mark.parametrize(("done", "steps"), [(6, 6), (6, 5)])
def test_a_finished_run_says_what_to_do(done, steps):
    assert f"finished: it has taken 6 steps, and optim.steps is {steps}. To train on" in finished(done, steps)
    assert finished(5, 6) is None
