"""Asking a network what it predicts: last layers fitted to answer as networks that predict epsilon and v do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.config import ModelConfig, ScheduleConfig, TextConfig, UNetConfig, VAEConfig
from sdjax.convert import CheckpointError
from sdjax.convert.describe.probe import probe
from sdjax.nn import TextEncoder, UNet

import models

CONFIG = ModelConfig(
    name="tiny",
    unet=UNetConfig(
        channels=(64,), heads=(2,), mid_heads=2, transformer_depth=(1,), self_attention=(True,), num_res_blocks=1,
        context_dim=16,
    ),
    vae=VAEConfig(channels=(32,), num_res_blocks=1),
    text=TextConfig(vocab_size=49408, width=16, layers=1, heads=2),
    schedule=ScheduleConfig(),
)  # fmt: skip
INNER = jax.jit(lambda *args: UNet(CONFIG.unet).apply(*args, capture_intermediates=True, mutable=["intermediates"]))


@pytest.fixture(scope="module")
def params():
    return models.random_params(CONFIG)


def answering(params, target):
    """Returns the parameters with a last convolution that answers noise x by target(x), in least squares."""
    x = jax.random.normal(jax.random.key(1), (2, 32, 32, 4))
    context = TextEncoder(CONFIG.text).apply({"params": params["text"]}, jnp.zeros((2, 77), jnp.int32))
    _, state = INNER({"params": params["unet"]}, x, jnp.full(2, 999.0), context)
    features = state["intermediates"]["conv_norm_out"]["__call__"][0]
    padded = jnp.pad(features, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = jnp.concatenate([padded[:, i : i + 32, j : j + 32] for i in range(3) for j in range(3)], -1)
    rows = np.asarray(windows, np.float64).reshape(-1, 9 * 64)
    solution, *_ = np.linalg.lstsq(rows, np.asarray(target(x), np.float64).reshape(-1, 4), rcond=None)
    last = {"kernel": solution.reshape(3, 3, 64, 4).astype(np.float32), "bias": np.zeros(4, np.float32)}
    return {**params, "unet": {**params["unet"], "conv_out": last}}


def test_a_network_that_gives_its_input_back_predicts_epsilon(params):
    answer, _ = probe(CONFIG, answering(params, lambda x: x))
    assert answer == "epsilon"


def test_a_network_that_answers_with_the_mean_picture_predicts_v(params):
    alpha, sigma = 0.0683, 0.9977  # of the last timestep
    mean = 0.7 * jnp.linspace(-1, 1, 32)[:, None, None] * jnp.ones((32, 32, 4))  # smooth, the same for every input
    answer, correlation = probe(CONFIG, answering(params, lambda x: alpha * x - sigma * mean))
    assert answer == "v"
    assert abs(correlation) < 0.3  # 0.0683 / sqrt(0.0683**2 + 0.4**2) and what the fit leaves


def test_an_answer_in_between_is_an_error(params):
    half = answering(params, lambda x: x)
    kernel = half["unet"]["conv_out"]["kernel"]
    half["unet"]["conv_out"]["kernel"] = kernel + 1.5 * kernel.std() * np.asarray(
        jax.random.normal(jax.random.key(3), kernel.shape)
    )
    with pytest.raises(CheckpointError, match=r"prediction='epsilon' or 'v': its answer to noise correlates"):
        probe(CONFIG, half)


def test_broken_weights_are_an_error(params):
    broken = {**params, "unet": {**params["unet"], "conv_out": {"kernel": np.full((3, 3, 64, 4), np.nan, np.float32),
                                                               "bias": np.zeros(4, np.float32)}}}  # fmt: skip
    with pytest.raises(CheckpointError, match="no finite picture"):
        probe(CONFIG, broken)
