"""One picture over several devices: each layer, what devices send each other, whole pictures, and refusals."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdjax
from sdjax.adapters import LowRank, Strength
from sdjax.config import UNetConfig
from sdjax.convert.names import tables
from sdjax.convert.parts.controlnet import LoadedControlNet
from sdjax.nn.controlnet import of_unet
from sdjax.nn.layers.attention import attend
from sdjax.nn.layers.conv import conv2d
from sdjax.nn.layers.norm import group_norm
from sdjax.nn.networks import NETWORKS
from sdjax.pipeline import placement
from sdjax.pipeline.collectives import collectives
from sdjax.tasks.adapters import AdapterUse
from sdjax.tasks.controls import ControlUse

import models

DEVICES = 4


def normal(*shape):
    return jnp.asarray(np.random.default_rng(len(shape)).standard_normal(shape, np.float32))


@functools.cache
def mesh(count=DEVICES, devices=DEVICES):
    return placement.make_mesh(jax.devices()[:devices], count)


def split(function, *args, on=None):
    """Returns what a function computes when each picture is divided, and what the devices send each other."""
    on = mesh() if on is None else on
    args = jax.device_put(args, jax.NamedSharding(on, jax.P()))
    program = placement.divided_by_rows(function, on).lower(*args).compile()
    return program(*args), collectives(program.as_text(), on.size)


def agree(got, wanted):
    np.testing.assert_allclose(got, wanted, atol=2e-5)  # sums of a few hundred float32 products in another order


CONVOLUTIONS = {  # kernel, stride, padding of rows; rows that each device gets from above and from below
    "usual": (3, 1, (1, 1), 2),
    "the UNet's downsampling": (3, 2, (1, 1), 1),
    "the encoder's downsampling": (3, 2, (0, 1), 1),
    "point": (1, 1, (0, 0), 0),
    "patches": (4, 4, (0, 0), 0),
    "wide": (7, 1, (3, 3), 6),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_get_only_the_rows_next_to_their_own(name):
    size, stride, padding, rows = CONVOLUTIONS[name]
    x, kernel = normal(2, 32, 8, 6), normal(size, size, 6, 4)
    convolve = functools.partial(conv2d, strides=(stride, stride), padding=(padding, padding))
    got, found = split(convolve, x, kernel, normal(4))
    agree(got, convolve(x, kernel, normal(4)))
    assert sum(one.received for one in found if one.kind == "collective-permute") == rows * x[:, 0].nbytes
    assert [one.kind for one in found if one.kind != "collective-permute"] == ["all-gather"]  # the output's


def test_a_convolution_whose_rows_do_not_divide_is_computed_whole():
    x, kernel = normal(1, 6, 8, 6), normal(3, 3, 6, 4)
    got, found = split(conv2d, x, kernel, None)
    agree(got, conv2d(x, kernel))
    assert not found


def test_norms_join_the_statistics_of_all_rows():
    x, scale, bias = 5 + 3 * normal(2, 8, 8, 6), normal(6), normal(6)
    norm = functools.partial(group_norm, groups=3, epsilon=1e-5)
    got, found = split(norm, x, scale, bias)
    agree(got, norm(x, scale, bias))
    # Mean and variance of 3 groups of 2 entries from 3 other devices; three quarters of the output
    assert sorted(one.received for one in found) == [2 * 3 * 2 * 4 * 3, x.nbytes * 3 // 4]


ATTENTIONS = {  # queries, keys, heads, whether lengths are given; exchanges besides the output's
    "heads that divide": (64, 64, 4, False, ["all-to-all", "all-to-all"]),
    "heads that do not divide": (64, 64, 3, False, []),
    "a prompt": (64, 7, 4, True, []),
    "queries that do not divide": (30, 30, 4, False, None),
}


@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention_over_rows_is_that_of_the_whole_map(name):
    n, m, heads, lengths, wanted = ATTENTIONS[name]
    q, k, v = normal(2, n, heads, 8), normal(2, m, heads, 8), normal(1, m, heads, 8)[0] + jnp.zeros((2, 1, 1, 1))
    length = jnp.array([5, 7]) if lengths else None
    attention = functools.partial(attend, key_length=length)
    got, found = split(attention, q, k, v)
    agree(got, attention(q, k, v))
    assert [one.kind for one in found] == ([] if wanted is None else [*wanted, "all-gather"])
    if wanted:  # three quarters of a device's own queries, keys and values, and then of its results
        assert [one.received for one in found[:-1]] == [3 * q.nbytes // 4 * 3 // 4, q.nbytes // 4 * 3 // 4]


def test_pictures_of_a_batch_are_spread_too():
    x, kernel = normal(4, 8, 8, 6), normal(3, 3, 6, 6)
    got, found = split(lambda x, k: conv2d(x, k) + group_norm(x, k[0, 0, 0], k[0, 0, 0], groups=2, epsilon=1e-5),
                       x, kernel, on=mesh(2, 4))  # fmt: skip
    agree(got, conv2d(x, kernel) + group_norm(x, *[kernel[0, 0, 0]] * 2, groups=2, epsilon=1e-5))
    assert {one.devices for one in found if one.kind == "all-gather"} == {2}  # no picture's devices need another's


TWO = dataclasses.replace(
    models.TINY,
    unet=UNetConfig(channels=(32, 32), heads=(2, 4), mid_heads=4, transformer_depth=(1, 1),
                    self_attention=(True, True), num_res_blocks=1, context_dim=32),
)  # fmt: skip
PICTURE = (np.random.default_rng(0).random((64, 64, 3)) * 255).astype(np.uint8)
MASK = np.zeros((64, 64), np.uint8)
MASK[20:40, 10:50] = 255
PROMPT, SHORT = "a picture", {"num_steps": 2, "seed": 5}


@functools.cache
def control():
    """Returns a random ControlNet, which moves its pictures, with a picture as hint."""
    config = of_unet(TWO.unet)
    params = models.fill_tree(NETWORKS["controlnet"].shapes(config))
    params["controlnet_cond_embedding"]["conv_out"]["kernel"] *= 1e-9  # random layers before it make hints this large
    return ControlUse(LoadedControlNet(config, params, "net"), PICTURE)


@functools.cache
def lora():
    """Returns a random adapter of all queries, for a UNet of two levels."""
    rng, adapter = np.random.default_rng(1), {}
    for leaf in tables.part_parameters("unet", TWO.unet):
        if leaf.path.endswith("to_q/kernel"):
            down, up = rng.normal(size=(leaf.shape[0], 2)), rng.normal(size=(2, leaf.shape[1]))
            adapter[leaf.path] = LowRank(down.astype(np.float32) / 6, up.astype(np.float32), 0.8)
    return AdapterUse(adapter, Strength(0.9))


TASKS = {
    "ControlNet": lambda pipe, **how: sdjax.text_to_image(pipe, PROMPT, controls=[control()], **SHORT, **how),
    "LoRA": lambda pipe, **how: sdjax.text_to_image(pipe, PROMPT, adapters=[[lora()]], **SHORT, **how),
    "text": lambda pipe, **how: sdjax.text_to_image(pipe, PROMPT, **SHORT, **how),
    "a batch": lambda pipe, **how: sdjax.text_to_image(pipe, [PROMPT, "b"], **{**SHORT, "seed": [1, 2]}, **how),
    "noise in each step": lambda pipe, **how: sdjax.text_to_image(
        pipe, PROMPT, sampler="euler_ancestral", **SHORT, **how
    ),
    "attention guidance": lambda pipe, **how: sdjax.text_to_image(pipe, PROMPT, guidance="sag", **SHORT, **how),
    "long prompt": lambda pipe, **how: sdjax.text_to_image(pipe, "a (red:1.3) " + "word " * 100, **SHORT, **how),
    "img2img": lambda pipe, **how: sdjax.image_to_image(pipe, PICTURE, PROMPT, strength=0.9, **SHORT, **how),
    "inpaint": lambda pipe, **how: sdjax.inpaint(pipe, PICTURE, MASK, PROMPT, method="blend", **SHORT, **how),
    "two passes": lambda pipe, **how: sdjax.two_pass(pipe, PROMPT, enlarge=2, **SHORT, **how),
    "windows": lambda pipe, **how: sdjax.text_to_image(pipe, PROMPT, window=64, height=96, **SHORT, **how),
    "seamless": lambda pipe, **how: sdjax.text_to_image(pipe, PROMPT, seamless="xy", **SHORT, **how),
    "one by one": lambda pipe, **how: sdjax.text_to_image(
        pipe, [PROMPT, "b"], exact=True, **{**SHORT, "seed": [1, 2]}, **how
    ),
}


@pytest.mark.few(0)
@pytest.mark.parametrize(("count", "devices"), [(2, 2), (4, 8)])
@pytest.mark.parametrize("name", TASKS)
def test_a_divided_picture_is_the_picture_to_one_level(name, count, devices):
    if name == "windows" and count == 4:
        devices = 4
    pipe = models.pipeline(TWO)
    whole = TASKS[name](pipe, devices=jax.devices()[:1]).astype(int)
    got = TASKS[name](pipe, devices=jax.devices()[:devices], split_picture=count)
    assert np.abs(got - whole).max() <= 1


def test_what_cannot_be_divided_is_refused():
    pipe = models.pipeline()
    with pytest.raises(ValueError, match="the number of devices; got 3 and 8 devices: use 1 or 2 or 4 or 8"):
        sdjax.text_to_image(pipe, PROMPT, split_picture=3, **SHORT)
    with pytest.raises(ValueError, match="height 72 has 9 rows of latents, which split_picture=2 does not divide: use"):
        sdjax.text_to_image(pipe, PROMPT, split_picture=2, height=72, **SHORT)
    with pytest.raises(ValueError, match="pmap cannot divide one picture"):
        sdjax.text_to_image(pipe, PROMPT, split_picture=2, parallel="pmap", **SHORT)
    with pytest.raises(ValueError, match="split_picture"):
        sdjax.text_to_image(pipe, PROMPT, split_picture=0, **SHORT)
