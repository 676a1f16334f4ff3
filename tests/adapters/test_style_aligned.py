"""StyleAligned: which entry is the reference, AdaIN, and which pictures change."""

import jax.numpy as jnp
import numpy as np
import small_unet

from sdjax.adapters.style_aligned import Shares, StyleAligned, aligned, references


def test_the_reference_is_the_first_picture_in_the_same_branch():
    np.testing.assert_array_equal(references(jnp.array([0, 0, 0, 1, 1, 1, 2, 2, 2])), [0, 1, 2] * 3)
    np.testing.assert_array_equal(references(jnp.array([0, 1, 2])), [0, 0, 0])


def test_aligned_has_the_moments_of_the_reference():
    x, reference = small_unet.normal(0, 2, 64, 2, 8), 3 * small_unet.normal(1, 2, 64, 2, 8) + 2
    out = aligned(x, reference)
    np.testing.assert_allclose(out.mean(1), reference.mean(1), atol=1e-4)
    np.testing.assert_allclose(out.std(1), reference.std(1), rtol=1e-3)


def test_only_other_pictures_with_a_strength_change():
    inputs = small_unet.inputs()
    own = Shares(jnp.array([1.0, 0.0, 1.0]), jnp.arange(3))
    zero = Shares(jnp.zeros(3), jnp.arange(3))
    plain = small_unet.run(small_unet.params(), inputs, (StyleAligned(),), (zero,))
    out = small_unet.run(small_unet.params(), inputs, (StyleAligned(),), (own,))
    np.testing.assert_array_equal(out[:2], plain[:2])
    assert abs(out[2] - plain[2]).max() > 1e-4
    np.testing.assert_allclose(plain, small_unet.run(small_unet.params(), inputs), atol=1e-5)


def test_the_other_pictures_follow_the_first():
    x, t, context = small_unet.inputs()
    own = Shares(jnp.ones(3), jnp.arange(3))
    out = small_unet.run(small_unet.params(), (x, t, context), (StyleAligned(),), (own,))
    other = small_unet.run(small_unet.params(), (x.at[0].multiply(-1), t, context), (StyleAligned(),), (own,))
    assert abs(out[1] - other[1]).max() > 1e-4
