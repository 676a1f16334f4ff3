"""The denoiser: scaling, prediction types, guidance, conditioning."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.config import UNetConfig
from sdjax.diffusion.conditioning import Conditioning, stack
from sdjax.diffusion.denoiser import make_denoiser
from sdjax.diffusion.guidance import Call, ClassifierFree, Unguided, make_guidance
from sdjax.diffusion.network import FunctionNetwork, UNetNetwork
from sdjax.samplers import row

RNG = np.random.default_rng(0)
X0, NOISE = RNG.standard_normal((2, 3, 4, 4, 2)).astype(np.float32)
X0, NOISE = jnp.asarray(X0), jnp.asarray(NOISE)
CONTEXT = jnp.asarray(RNG.standard_normal((3, 5, 6)).astype(np.float32))


def at(sigma, timestep=500.0):
    return row(timestep, np.float32(sigma), 0.0, calls=[1.0])


def denoised(apply, prediction, branches, x, row, guidance=None):
    """Returns the x0 of a network apply(x, t, conditioning)."""
    denoiser = make_denoiser(FunctionNetwork(apply), {}, prediction, branches, guidance or Unguided())
    x = jnp.asarray(x)
    return denoiser(x, row, denoiser.init(x))[0].x0


def guide(unconditional, conditional, scale, rescale=0.0):
    """Returns the guided output of classifier-free guidance."""
    outputs = {"unconditional": jnp.asarray(unconditional), "conditional": jnp.asarray(conditional)}
    call = Call(outputs["conditional"], at(1.0), 0.0, 1.0, "x0")
    return ClassifierFree(scale, rescale).combine(outputs, call, ())[0].x0


@pytest.mark.parametrize("sigma", [0.03, 1.0, 14.6])
def test_a_network_that_is_right_gives_back_the_image_whatever_it_predicts(sigma):
    alpha = 1 / np.sqrt(1 + sigma**2)
    outputs = {"epsilon": NOISE, "x0": X0, "v": alpha * NOISE - alpha * sigma * X0}
    for prediction, output in outputs.items():
        apply = lambda x, t, c, o=output: jnp.asarray(o)  # noqa: E731
        got = denoised(apply, prediction, [Conditioning()], X0 + sigma * NOISE, at(sigma))
        np.testing.assert_allclose(got, X0, atol=1e-5)  # sigma times the rounding of x


def test_the_network_sees_unit_variance_and_the_rows_timestep():
    seen = {}

    def apply(x, t, conditioning):
        seen.update(x=x, t=t, context=conditioning.context, label=conditioning.label)
        return x

    told = Conditioning(context=CONTEXT, label=jnp.arange(3))
    denoised(apply, "x0", [told], 3.0 * NOISE, at(np.sqrt(8.0), 123.5))
    np.testing.assert_allclose(seen["x"], NOISE, rtol=1e-6)  # sqrt(1 + 8) = 3
    np.testing.assert_array_equal(seen["t"], np.full(3, 123.5, np.float32))
    assert seen["context"] is CONTEXT
    np.testing.assert_array_equal(seen["label"], np.arange(3))


def test_guidance_runs_both_passes_in_one_call_and_goes_beyond_the_conditional_one():
    calls = []

    def apply(x, t, conditioning):
        calls.append(x.shape[0])
        return conditioning.context[:, :1, None, :2] * jnp.ones_like(x)

    plain, empty = Conditioning(CONTEXT), Conditioning(CONTEXT[::-1])
    got = denoised(apply, "x0", [empty, plain], NOISE, at(1.0), ClassifierFree(7.5))
    assert calls == [6]
    c, u = CONTEXT[:, 0, :2], CONTEXT[::-1][:, 0, :2]
    np.testing.assert_allclose(got[:, 2, 2], u + 7.5 * (c - u), rtol=1e-5, atol=1e-5)
    denoised(apply, "x0", [plain], NOISE, at(1.0))
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
        def apply(x_in, t, conditioning):
            x0 = jnp.where(conditioning.context[:, :1, None, :1] > 0, jnp.repeat(c, 2, 0), jnp.repeat(u, 2, 0))
            epsilon = (x_in * np.sqrt(1 + sigma**2) - x0) / sigma
            return {"x0": x0, "epsilon": epsilon, "v": alpha * epsilon - alpha * sigma * x0}[prediction]

        return apply

    told, untold = Conditioning(jnp.ones((3, 1, 1))), Conditioning(-jnp.ones((3, 1, 1)))
    for prediction in ("x0", "epsilon", "v"):
        got = denoised(network(prediction), prediction, [untold, told], x, at(sigma), ClassifierFree(scale))
        np.testing.assert_allclose(got, u + scale * (c - u), atol=3e-5)  # 9 times the rounding


def test_full_rescaling_keeps_the_conditional_deviation():
    got = np.asarray(guide(jnp.asarray(X0), jnp.asarray(NOISE), 9.0, 1.0))
    plain = np.asarray(guide(jnp.asarray(X0), jnp.asarray(NOISE), 9.0))
    for i in range(3):
        assert got[i].std(ddof=1) == pytest.approx(float(NOISE[i].std(ddof=1)), rel=1e-5)
    half = np.asarray(guide(jnp.asarray(X0), jnp.asarray(NOISE), 9.0, 0.5))
    np.testing.assert_allclose(half, (got + plain) / 2, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(guide(X0, NOISE, 9.0, 0.0), plain, rtol=1e-6)


def test_a_picture_of_scale_one_is_its_conditional_output_whatever_the_others_are():
    scale, rescale = jnp.array([7.5, 1.0, 3.0]), jnp.array([0.0, 0.0, 0.7])
    got = np.asarray(guide(X0, NOISE, scale, rescale))
    np.testing.assert_array_equal(got[1], NOISE[1])
    for i in (0, 2):
        np.testing.assert_allclose(got[i : i + 1], guide(X0[i : i + 1], NOISE[i : i + 1], scale[i], rescale[i]), 1e-6)
    flat = np.asarray(guide(jnp.zeros_like(X0), jnp.zeros_like(X0), scale, rescale))
    np.testing.assert_array_equal(flat[:2], 0)  # one colour has no deviation; who does not rescale stays finite


def test_only_all_scales_of_one_switch_guidance_off():
    assert make_guidance(1) == Unguided()
    assert make_guidance([1, 1]) == Unguided()
    assert make_guidance([1, 2]).branches == ("unconditional", "conditional")


def test_numbers_of_guidance_are_traced_and_its_kind_is_static():
    count = []

    @jax.jit
    def run(guidance, u, c):
        count.append(0)
        return guide(u, c, guidance.scale, guidance.rescale)

    for scale, rescale in ((7.5, 0.0), (1.0, 0.7), (3.0, 0.2)):
        run(ClassifierFree(jnp.float32(scale), jnp.float32(rescale)), X0, NOISE)
    assert len(count) == 1


def test_the_network_of_a_unet_puts_concatenated_channels_behind_the_latent_unscaled(monkeypatch):
    mask = jnp.asarray(RNG.standard_normal((3, 4, 4, 1)).astype(np.float32))
    seen = []

    class Spy:
        def apply(self, variables, x, *inputs, **more):
            seen.append(x)
            return x[..., :2]

    monkeypatch.setattr("sdjax.diffusion.network.UNet", lambda config, dtype: Spy())
    network = UNetNetwork(UNetConfig(), "float32")
    denoiser = make_denoiser(network, {}, "x0", [Conditioning(concat=mask)], Unguided())
    denoiser(NOISE, at(3.0), denoiser.init(NOISE))
    assert seen[0].shape == (3, 4, 4, 3)
    np.testing.assert_array_equal(seen[0][..., 2:], mask)


def test_branches_are_interleaved():
    branches = [Conditioning(context=jnp.full((2, 1, 1), float(i))) for i in range(3)]
    np.testing.assert_array_equal(stack(branches).context[:, 0, 0], [0, 1, 2, 0, 1, 2])


def test_contexts_of_different_length_are_padded_and_keep_their_lengths():
    short, long = Conditioning(CONTEXT[:, :2]), Conditioning(CONTEXT, context_length=jnp.array([5, 3, 4]))
    both = stack([short, long])
    assert both.context.shape == (6, 5, 6)
    assert both.context_length.tolist() == [2, 5, 2, 3, 2, 4]
    np.testing.assert_array_equal(both.context[::2, :2], CONTEXT[:, :2])
    assert stack([Conditioning(CONTEXT), Conditioning(CONTEXT)]).context_length is None


def test_what_cannot_be_guided_is_refused():
    both, one = Conditioning(CONTEXT, label=jnp.arange(3)), Conditioning(CONTEXT)
    network = FunctionNetwork(lambda x, t, conditioning: x)
    with pytest.raises(ValueError, match="guidance needs label in all conditionings or in none"):
        stack([one, both])
    with pytest.raises(ValueError, match="guidance needs context of one shape"):
        stack([Conditioning(CONTEXT[:2]), one])
    with pytest.raises(ValueError, match="unknown prediction 'eps'; the known ones are epsilon, v, x0"):
        make_denoiser(network, {}, "eps", [one], Unguided())
    with pytest.raises(ValueError, match="this guidance needs 2 conditionings, unconditional, conditional; got 1"):
        make_denoiser(network, {}, "x0", [one], ClassifierFree(2.0))


def test_half_precision_outputs_are_guided_in_float32():
    run = lambda x: denoised(lambda x, t, c: x.astype(jnp.bfloat16), "epsilon", [Conditioning()], x, at(1.0))  # noqa: E731
    assert jax.eval_shape(run, NOISE).dtype == jnp.float32
