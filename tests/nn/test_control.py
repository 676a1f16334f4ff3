"""ControlNet and T2I-Adapter as networks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.nn import UNet
from sdjax.nn.controlnet import ControlNet, copy_encoder, of_unet
from sdjax.nn.networks import NETWORKS
from sdjax.nn.t2i import T2IAdapter, T2IConfig

import models

UNET = models.TINY.unet
CONFIG = of_unet(UNET)
X, T, CONTEXT = jnp.ones([1, 8, 8, 4]), jnp.ones([1]), jnp.ones([1, 3, UNET.context_dim])
HINT = jnp.ones([1, 64, 64, 3])


@pytest.mark.slow  # compiles networks
def test_a_new_controlnet_changes_nothing_and_has_the_unets_encoder():
    unet = models.random_params(models.TINY)["unet"]
    params = copy_encoder(CONFIG, NETWORKS["controlnet"].init(CONFIG, jax.random.key(0)), unet)
    residuals = ControlNet(CONFIG).apply({"params": params}, X, T, CONTEXT, HINT)
    assert len(residuals.skips) + 1 == CONFIG.outputs
    assert not any(np.any(one) for one in jax.tree.leaves(residuals))
    np.testing.assert_array_equal(params["mid_block"]["resnets_0"]["conv1"]["kernel"],
                                  unet["mid_block"]["resnets_0"]["conv1"]["kernel"])  # fmt: skip
    assert np.any(params["controlnet_cond_embedding"]["conv_in"]["kernel"])  # or it would never learn
    out = UNet(UNET).apply({"params": unet}, X, T, CONTEXT, residuals=residuals)
    np.testing.assert_array_equal(out, UNet(UNET).apply({"params": unet}, X, T, CONTEXT))


def test_a_controlnet_of_an_inpainting_model_sees_the_latent_alone():
    wide = dataclasses.replace(UNET, in_channels=9)
    config = of_unet(wide)
    kernel = np.arange(3 * 3 * 9 * 32.0).reshape(3, 3, 9, 32)
    fake = {"conv_in": {"kernel": kernel, "bias": np.zeros(32)}}
    copied = copy_encoder(config, {"conv_in": {}}, fake)
    np.testing.assert_array_equal(copied["conv_in"]["kernel"], kernel[:, :, :4])


def test_pooled_residuals_are_means_of_the_map():
    params = models.fill_tree(NETWORKS["controlnet"].shapes(CONFIG))
    whole = ControlNet(CONFIG).apply({"params": params}, X, T, CONTEXT, HINT)
    pooled = ControlNet(dataclasses.replace(CONFIG, pooled=True)).apply({"params": params}, X, T, CONTEXT, HINT)
    for one, mean in zip(jax.tree.leaves(whole), jax.tree.leaves(pooled)):
        np.testing.assert_allclose(one.mean((1, 2), keepdims=True), mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("hint", [jnp.ones([1, 64, 64, 1]), jnp.ones([1, 32, 64, 3])])
def test_a_hint_of_another_size_is_refused(hint):
    params = NETWORKS["controlnet"].shapes(CONFIG)
    with pytest.raises(ValueError, match="hint"):
        jax.eval_shape(lambda p: ControlNet(CONFIG).apply({"params": p}, X, T, CONTEXT, hint), params)


@pytest.mark.parametrize(("keeps_rest", "sides"), [(False, [7, 3, 1]), (True, [7, 4, 2])])
def test_t2i_features_of_odd_sizes(keeps_rest, sides):
    config = T2IConfig(hint_channels=1, channels=(8, 8, 16), num_res_blocks=1, keeps_rest=keeps_rest)
    params = NETWORKS["t2i"].shapes(config)
    features = jax.eval_shape(lambda p: T2IAdapter(config).apply({"params": p}, jnp.zeros([1, 56, 64, 1])), params)
    assert [f.shape[1] for f in features] == sides
    assert [f.shape[3] for f in features] == [8, 8, 16]
