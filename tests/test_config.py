"""Model descriptions: round trips, and what they refuse."""

import dataclasses
import json

import pytest

from sdjax import configs
from sdjax.config import ConfigError, ModelConfig, ScheduleConfig, TextConfig, UNetConfig, VAEConfig


@pytest.mark.parametrize("name", ["sd1", "sd2_v", "x4_upscaler", "sd2_unclip_l"])
def test_a_description_survives_json(name):
    config = configs.get(name)
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert hash(ModelConfig.from_dict(config.to_dict())) == hash(config)  # it is what programs are keyed by


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UNetConfig(heads=(8, 8, 8)), "3 entries for 4 levels"),
        (lambda: UNetConfig(heads=(7, 8, 8, 0)), "7 does not divide 320"),
        (lambda: UNetConfig(channels=(100, 640, 1280, 1280)), "multiples of norm_groups"),
        (lambda: UNetConfig(num_classes=10, label_dim=10), "not both"),
        (lambda: UNetConfig(in_channels="4"), "in_channels is int; got '4'"),
        (lambda: UNetConfig(in_channels=True), "in_channels is int; got True"),
        (lambda: UNetConfig(channels=[320, 640, 1280, 1280]), "channels is a tuple"),
        (lambda: VAEConfig(scale_factor=0.0), "scale_factor is positive"),
        (lambda: TextConfig(heads=5), "does not divide width"),
        (lambda: TextConfig(activation="relu"), "quick_gelu, gelu; got 'relu'"),
        (lambda: TextConfig(pad_token_id=49408), "outside the vocabulary"),
        (lambda: ScheduleConfig(prediction="eps"), "epsilon, v, x0; got 'eps'"),
        (lambda: ScheduleConfig(zero_terminal_snr=True), "zero terminal SNR needs v"),
        (lambda: ModelConfig("x", text=TextConfig(width=512, heads=8)), "is not the text encoder's width = 512"),
        (lambda: ModelConfig("x", unet=UNetConfig(in_channels=3)), "fewer than a latent's 4"),
        (lambda: ModelConfig.from_dict({"name": "x", "colour": 1}), "has no field colour"),
        (lambda: ModelConfig.from_dict({"unet": {}}), "name"),
        (lambda: ModelConfig.from_dict({"name": "x", "unet": 3}), "ModelConfig.unet holds fields with names; got 3"),
    ],
)
def test_contradictions_are_refused_with_a_sentence(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_description_cannot_be_changed_by_accident():
    with pytest.raises(dataclasses.FrozenInstanceError):
        UNetConfig().in_channels = 9
