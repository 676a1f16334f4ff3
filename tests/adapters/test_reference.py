"""Reference-only: which layers use the reference, what they compute, and what leaves a picture as it is."""

import jax.numpy as jnp
import numpy as np
import pytest
import small_unet
from test_style_aligned import attention

from sdjax.adapters.reference import (
    ReferenceArrays,
    References,
    attention_numbers,
    joined,
    mixed,
    norm_numbers,
    renormed,
)
from sdjax.config import UNetConfig
from sdjax.nn.layers.attention import attend

NONE = np.array([[-np.inf, np.inf]] * 3, np.float32)
ALWAYS = -NONE


def one(latent, *, attention=1.0, norms=0.0, fidelity=0.0, during=ALWAYS, share=1.0):
    """Returns the arrays of a reference that gets noise so that its share is `share`."""
    each = [np.full(3, value, np.float32) for value in (attention, norms, fidelity)]
    return ReferenceArrays(latent, small_unet.normal(9, *latent.shape), np.full((3, 1000), share), *each, during)


def run(*own):
    return small_unet.run(small_unet.params(), small_unet.inputs(), (References(),), (own,))


def test_layers_are_numbered_as_in_the_web_ui():
    """Its self-attentions are sorted by width; of its blocks, 0 to 8 of 12 of the decoder are used."""
    got = attention_numbers(UNetConfig())
    order = ["down_blocks_2/attentions_0", "down_blocks_2/attentions_1", "mid_block/attentions_0",
             *(f"up_blocks_1/attentions_{i}" for i in range(3)), *(f"down_blocks_1/attentions_{i}" for i in range(2)),
             *(f"up_blocks_2/attentions_{i}" for i in range(3)), *(f"down_blocks_0/attentions_{i}" for i in range(2)),
             *(f"up_blocks_3/attentions_{i}" for i in range(3))]  # fmt: skip
    assert got == {f"{path}/transformer_blocks_0/attn1": i / 16 for i, path in enumerate(order)}
    down = ["down_blocks_1/attentions_0", "down_blocks_1/attentions_1", "down_blocks_2/attentions_0",
            "down_blocks_2/attentions_1", "down_blocks_3/resnets_0", "down_blocks_3/resnets_1"]  # fmt: skip
    up = ["up_blocks_0/resnets_0", "up_blocks_0/resnets_1", "up_blocks_0/upsamplers_0", "up_blocks_1/attentions_0",
          "up_blocks_1/attentions_1", "up_blocks_1/upsamplers_0", "up_blocks_2/attentions_0",
          "up_blocks_2/attentions_1"]  # fmt: skip
    wanted = {"mid_block": 0.0, **{path: 2 - i / 3 for i, path in enumerate(down)}}
    assert norm_numbers(UNetConfig()) == pytest.approx(wanted | {path: i / 4 for i, path in enumerate(up)})


def test_an_attention_is_to_the_keys_of_all_references_that_work():
    q, k, v = (small_unet.normal(i, 2, 5, 2, 4) for i in range(3))
    seen = [tuple(small_unet.normal(10 * r + i, 2, 5, 2, 4) for i in range(2)) for r in (1, 2)]
    got = joined(
        lambda q, k, v, n: attend(q, k, v, key_length=n), q, k, v, seen, jnp.array([[True, False], [True, True]])
    )
    for i, which in enumerate(([0, 1], [1])):
        keys, values = (np.concatenate([own[i], *(seen[r][j][i] for r in which)]) for j, own in enumerate((k, v)))
        np.testing.assert_allclose(got[i], attention(np.asarray(q[i]), keys, values), atol=1e-5)


def test_maps_get_the_mean_and_deviation_of_the_references_that_work():
    x = small_unet.normal(0, 2, 6, 5, 3)
    means, variances = small_unet.normal(1, 2, 2, 1, 1, 3), small_unet.normal(2, 2, 2, 1, 1, 3) ** 2
    got = renormed(x, list(zip(means, variances)), jnp.array([[True, False], [True, True]]))
    for i, mean, variance in (0, means[:, 0].mean(0), variances[:, 0].mean(0)), (1, means[1, 1], variances[1, 1]):
        np.testing.assert_allclose(got[i].mean((0, 1)), mean[0, 0], atol=1e-5)
        np.testing.assert_allclose(got[i].var((0, 1)), variance[0, 0], rtol=1e-3)


def test_the_fidelity_is_the_share_of_the_unchanged_result():
    own = [one(small_unet.normal(0, 3, 4, 4, 4), fidelity=f) for f in (0.25, 0.75)]
    alone, changed = jnp.zeros((3, 1)), jnp.ones((3, 1))
    on = jnp.array([[True, True, False], [False, True, False]])
    np.testing.assert_allclose(mixed(alone, changed, own, on)[:, 0], [0.75, 0.5, 0])


def test_a_reference_equal_to_the_picture_changes_nothing():
    """Its keys and values are the picture's, so each counts twice; its statistics are the picture's."""
    plain = run(one(small_unet.inputs()[0], attention=0.0))
    np.testing.assert_allclose(run(one(small_unet.inputs()[0], norms=2.0)), plain, atol=1e-4)


def test_what_leaves_a_picture_as_it_is():
    plain, other = small_unet.run(small_unet.params(), small_unet.inputs()), small_unet.normal(3, 3, 4, 4, 4)
    changed = run(one(other, share=0.5))
    assert abs(changed - plain).max() > 1e-3
    for same in (one(other, attention=0.0), one(other, fidelity=1.0), one(other, norms=2.0, during=NONE)):
        np.testing.assert_allclose(run(same), plain, atol=1e-5)  # float32 rounding of another program
    some = one(other, share=0.5)
    during = some.during.copy()
    during[1] = NONE[1]
    got = run(some.replace(during=during))
    np.testing.assert_array_equal(got[::2], changed[::2])
    np.testing.assert_allclose(got[1], plain[1], atol=1e-5)
