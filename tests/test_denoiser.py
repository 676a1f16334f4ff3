"""The denoiser: scaling, prediction types, guidance, conditioning."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.diffusion.denoiser import Conditioning, guide, interleave, make_denoiser
from sdjax.samplers.base import row

RNG = np.random.default_rng(0)
X0, NOISE = RNG.standard_normal((2, 3, 4, 4, 2)).astype(np.float32)
CONTEXT = RNG.standard_normal((3, 5, 6)).astype(np.float32)


def at(sigma, timestep=500.0):
    return row(timestep, np.float32(sigma), 0.0, calls=[1.0])


@pytest.mark.parametrize("sigma", [0.03, 1.0, 14.6])
def test_a_network_that_is_right_gives_back_the_image_whatever_it_predicts(sigma):
    alpha = 1 / np.sqrt(1 + sigma**2)
    outputs = {"epsilon": NOISE, "x0": X0, "v": alpha * NOISE - alpha * sigma * X0}
    for prediction, output in outputs.items():
        denoise = make_denoiser(lambda x, t, c, label, o=output: jnp.asarray(o), prediction, Conditioning(None))
        # sigma times the rounding of x
        np.testing.assert_allclose(denoise(X0 + sigma * NOISE, at(sigma)), X0, atol=1e-5)


def test_the_network_sees_unit_variance_and_the_rows_timestep():
    seen = {}

    def apply(x, t, context, label):
        seen.update(x=x, t=t, context=context, label=label)
        return x

    x = 3.0 * NOISE
    make_denoiser(apply, "x0", Conditioning(context=CONTEXT, label=np.arange(3)))(x, at(np.sqrt(8.0), 123.5))
    np.testing.assert_allclose(seen["x"], NOISE, rtol=1e-6)  # sqrt(1 + 8) = 3
    np.testing.assert_array_equal(seen["t"], np.full(3, 123.5, np.float32))
    assert seen["context"] is CONTEXT
    np.testing.assert_array_equal(seen["label"], np.arange(3))


def test_guidance_runs_both_passes_in_one_call_and_goes_beyond_the_conditional_one():
    calls = []

    def apply(x, t, context, label):
        calls.append(x.shape[0])
        return context[:, :1, None, :2] * jnp.ones_like(x)

    plain, empty = Conditioning(context=jnp.asarray(CONTEXT)), Conditioning(context=jnp.asarray(CONTEXT[::-1]))
    denoise = make_denoiser(apply, "x0", plain, unconditional=empty, guidance_scale=7.5)
    got = denoise(jnp.asarray(NOISE), at(1.0))
    assert calls == [6]
    c, u = CONTEXT[:, 0, :2], CONTEXT[::-1][:, 0, :2]
    np.testing.assert_allclose(got[:, 2, 2], u + 7.5 * (c - u), rtol=1e-5, atol=1e-5)
    make_denoiser(apply, "x0", plain)(jnp.asarray(NOISE), at(1.0))
    assert calls == [6, 3]


def test_guidance_one_is_the_conditional_output_and_zero_the_unconditional_one():
    np.testing.assert_allclose(guide(X0, NOISE, 1.0), NOISE, atol=1e-6)
    np.testing.assert_allclose(guide(X0, NOISE, 0.0), X0)


def test_a_scale_for_each_picture_is_that_pictures_own():
    got = guide(jnp.asarray(X0), jnp.asarray(NOISE), jnp.array([1.0, 3.0, 7.5]))
    for i, scale in enumerate([1.0, 3.0, 7.5]):
        np.testing.assert_allclose(got[i], guide(X0[i], NOISE[i], scale), rtol=1e-6)


def test_guidance_of_v_equals_guidance_of_epsilon_and_of_x0():
    """All predictions are linear in each other at one x and sigma."""
    sigma, scale = 2.0, 9.0
    x = jnp.asarray(X0 + sigma * NOISE)
    u, c = X0, 0.3 * NOISE - 0.2
    alpha = 1 / np.sqrt(1 + sigma**2)

    def network(prediction):
        def apply(x_in, t, context, label):
            x0 = jnp.where(context[:, :1, None, :1] > 0, jnp.repeat(c, 2, 0), jnp.repeat(u, 2, 0))
            epsilon = (x_in * np.sqrt(1 + sigma**2) - x0) / sigma
            return {"x0": x0, "epsilon": epsilon, "v": alpha * epsilon - alpha * sigma * x0}[prediction]

        return apply

    told, untold = Conditioning(jnp.ones((3, 1, 1))), Conditioning(-jnp.ones((3, 1, 1)))
    for prediction in ("x0", "epsilon", "v"):
        denoise = make_denoiser(network(prediction), prediction, told, unconditional=untold, guidance_scale=scale)
        np.testing.assert_allclose(denoise(x, at(sigma)), u + scale * (c - u), atol=3e-5)  # 9 times the rounding


def test_full_rescaling_keeps_the_conditional_deviation():
    got = np.asarray(guide(jnp.asarray(X0), jnp.asarray(NOISE), 9.0, 1.0))
    plain = np.asarray(guide(jnp.asarray(X0), jnp.asarray(NOISE), 9.0))
    for i in range(3):
        assert got[i].std(ddof=1) == pytest.approx(NOISE[i].std(ddof=1), rel=1e-5)
    half = np.asarray(guide(jnp.asarray(X0), jnp.asarray(NOISE), 9.0, 0.5))
    np.testing.assert_allclose(half, (got + plain) / 2, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(guide(X0, NOISE, 9.0, 0.0), plain, rtol=1e-6)


def test_concatenated_channels_follow_the_latent_unscaled():
    mask = RNG.standard_normal((3, 4, 4, 1)).astype(np.float32)
    seen = []
    told = Conditioning(None, concat=mask)
    make_denoiser(lambda x, t, c, label: seen.append(x) or x[..., :2], "x0", told)(NOISE, at(3.0))
    assert seen[0].shape == (3, 4, 4, 3)
    np.testing.assert_array_equal(seen[0][..., 2:], mask)


def test_pairs_are_interleaved():
    both = interleave(Conditioning(context=jnp.zeros((2, 1, 1))), Conditioning(context=jnp.ones((2, 1, 1))))
    np.testing.assert_array_equal(both.context[:, 0, 0], [0, 1, 0, 1])


def test_what_cannot_be_guided_is_refused():
    both, one = Conditioning(CONTEXT, label=np.arange(3)), Conditioning(CONTEXT)
    with pytest.raises(ValueError, match="guidance needs label in both"):
        interleave(one, both)
    with pytest.raises(ValueError, match="guidance needs context of one shape"):
        interleave(Conditioning(CONTEXT[:2]), one)
    with pytest.raises(ValueError, match="unknown prediction 'eps'; the known ones are epsilon, v, x0"):
        make_denoiser(lambda *a: a[0], "eps", one)


def test_half_precision_outputs_are_guided_in_float32():
    denoise = make_denoiser(lambda x, t, c, label: x.astype(jnp.bfloat16), "epsilon", Conditioning(None))
    assert jax.eval_shape(lambda x: denoise(x, at(1.0)), NOISE).dtype == jnp.float32
