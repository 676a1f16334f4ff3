"""The table of networks: it describes what a model is made of, and every network of it can be shaped."""

import dataclasses
import math
import typing

import jax
import pytest

from sdjax.config import ModelConfig, ScheduleConfig
from sdjax.nn.networks import NETWORKS
from sdjax.nn.parts import PARTS, parts_of

import models

# Parameters of the released files: the safety checker's (303,966,208 and the concepts' 20 * 768 + 20), VGG16's
# convolutions and LPIPS's 1,472 weights, pix2pix's discriminator of three layers
RELEASED = {"safety": 303_966_208 + 20 * 768 + 20, "lpips": 14_714_688 + 1_472, "discriminator": 2_765_633}


def test_every_network_that_a_model_is_described_by_is_in_the_table():
    described = {}
    for name, hint in typing.get_type_hints(ModelConfig).items():
        kinds = [kind for kind in typing.get_args(hint) or (hint,) if kind is not type(None)]
        if dataclasses.is_dataclass(kinds[0]) and kinds[0] is not ScheduleConfig or name == "noise_stats":
            described[name] = kinds[0]
    assert {name: part.described_by for name, part in PARTS.items()} == described


def test_a_model_has_the_parts_that_it_describes():
    assert parts_of(models.TINY) == ("unet", "vae", "text")
    assert all(part.without is None for name, part in PARTS.items() if name in parts_of(models.TINY))


@pytest.mark.parametrize("name", RELEASED)
def test_networks_apart_from_models_have_the_released_sizes(name):
    entry = NETWORKS[name]
    shapes = entry.shapes(None if entry.described_by is None else entry.described_by())
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == RELEASED[name]


def test_shapes_belong_to_the_caller():
    NETWORKS["discriminator"].shapes().clear()
    assert NETWORKS["discriminator"].shapes()
