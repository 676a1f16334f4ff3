"""The UNet's inputs besides x, t and one context: a ControlNet's residuals, and the length of each context."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.adapters import path_of
from sdjax.config import UNetConfig
from sdjax.nn import UNet
from sdjax.nn.unet import Residuals

import models
from checks import relative_error

# Two levels: skips of conv_in, a block, a downsampler and a block; 4 x 4 and 2 x 2 pixels
CONFIG = UNetConfig(channels=(32, 64), heads=(2, 2), mid_heads=2, transformer_depth=(1, 1), context_dim=16,
                    self_attention=(False, True), num_res_blocks=1)  # fmt: skip
SHAPES = [(2, 4, 4, 32), (2, 4, 4, 32), (2, 2, 2, 32), (2, 2, 2, 64)]


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


INPUTS = normal(0, 2, 4, 4, 4), jnp.array([100.0, 700.0])
CONTEXT = normal(1, 2, 5, 16)
SHAPES_OF_PARAMS = jax.eval_shape(UNet(CONFIG).init, jax.random.key(0), *INPUTS, CONTEXT)["params"]
PARAMS = jax.tree.map(jnp.asarray, models.fill_tree(SHAPES_OF_PARAMS))


@jax.jit
def run(context, **options):
    return UNet(CONFIG).apply({"params": PARAMS}, *INPUTS, context, **options)


def test_residuals_are_added_to_each_skip_and_to_the_middle():
    """As the layers where they arrive see it: skips come back in reverse, and nothing else of the network changes."""
    residuals = Residuals([normal(i, *shape) for i, shape in enumerate(SHAPES)], normal(9, 2, 2, 2, 64))
    joins = [f"up_blocks_{i}/joins_{j}" for i in (0, 1) for j in (0, 1)]

    def add(method, args, kwargs, context):
        path = path_of(context)
        if path in joins:
            x, skip = args
            return method(x, skip + residuals.skips[3 - joins.index(path)])
        out = method(*args, **kwargs)
        return out + residuals.middle if path == "mid_block" and context.method_name == "__call__" else out

    @jax.jit
    def by_hand(context):
        with nn.intercept_methods(add):
            return UNet(CONFIG).apply({"params": PARAMS}, *INPUTS, context)

    got, plain = run(CONTEXT, residuals=residuals), run(CONTEXT)
    assert relative_error(got, by_hand(CONTEXT)) < 3e-6  # there the residuals are constants, which XLA folds
    assert relative_error(plain, got) > 0.1


def test_a_residual_may_be_one_number_a_channel():
    """As those of nets whose outputs are averaged over the map."""
    small = Residuals([normal(i, 2, 1, 1, shape[-1]) for i, shape in enumerate(SHAPES)], normal(9, 2, 1, 1, 64))
    skips = [jnp.broadcast_to(a, shape) for a, shape in zip(small.skips, SHAPES)]
    whole = Residuals(skips, jnp.broadcast_to(small.middle, (2, 2, 2, 64)))
    np.testing.assert_array_equal(run(CONTEXT, residuals=small), run(CONTEXT, residuals=whole))


def test_residuals_for_another_network_are_refused():
    with pytest.raises(ValueError, match="4 skips, got residuals for 3"):
        run(CONTEXT, residuals=Residuals([jnp.zeros(shape) for shape in SHAPES[:3]], jnp.zeros((2, 2, 2, 64))))


@pytest.mark.slow
def test_contexts_of_different_length_share_a_batch():
    """Each gives what it gives alone; nothing behind the end of a context is seen, by neither attention."""
    length = jnp.array([3, 5], jnp.int32)
    got = run(CONTEXT, context_length=length)
    for i, n in enumerate(length):
        alone = UNet(CONFIG).apply({"params": PARAMS}, *(a[i : i + 1] for a in INPUTS), CONTEXT[i : i + 1, :n])
        assert relative_error(got[i : i + 1], alone) < 3e-6  # sums of another length: float32 rounding
    other = CONTEXT.at[0, 3:].set(1e4)
    np.testing.assert_array_equal(run(other, context_length=length), got)
    assert relative_error(run(other), run(CONTEXT)) > 0.1
