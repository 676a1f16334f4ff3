"""StyleAligned: the paper's formula, which entry is the reference, and which pictures change."""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
import small_unet

from sdjax.adapters import patched
from sdjax.adapters.patch import path_of
from sdjax.adapters.style_aligned import Shares, StyleAligned, aligned, entries
from sdjax.nn import UNet


@dataclasses.dataclass(frozen=True)
class Recorder:
    """Notes the queries, keys and values, and the result, of each call of a self-attention."""

    calls: ClassVar[list[Any]] = []

    def intercept(self, shared, own):
        def intercept(method, args, kwargs, context):
            out = method(*args, **kwargs)
            if path_of(context).endswith("/attn1/attend"):
                self.calls.append([np.asarray(one, np.float64) for one in (*args[:3], out)])
            return out

        return intercept


def attention(q, k, v):
    logits = np.einsum("nhd,mhd->hnm", q, k) / q.shape[-1] ** 0.5
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.einsum("hnm,mhd->nhd", weights / weights.sum(-1, keepdims=True), v)


def adain(x, y):
    return y.std(0) * (x - x.mean(0)) / x.std(0) + y.mean(0)


def shares(*strengths, branches=1):
    return Shares(
        jnp.repeat(jnp.array(strengths), branches), jnp.repeat(jnp.arange(len(strengths)) == 0, branches)
    )  # fmt: skip


def test_pictures_attend_as_the_paper_says():
    """Section 3.2: Attention(AdaIN(Q, Q_r), [K_r; AdaIN(K, K_r)], [V_r; V])."""
    params, inputs = {"params": small_unet.params()}, small_unet.inputs()
    Recorder.calls.clear()
    with patched([Recorder(), StyleAligned()], None, [None, shares(1.0, 1.0, 1.0)]):
        UNet(small_unet.CONFIG).apply(params, *inputs)
    (*_, together), (q, k, v, _) = Recorder.calls[:2]  # of the first attention: shared, and alone
    for i in 1, 2:
        keys, values = np.concatenate([k[0], adain(k[i], k[0])]), np.concatenate([v[0], v[i]])
        want = attention(adain(q[i], q[0]), keys, values)
        np.testing.assert_allclose(together[i], want, atol=2e-4)  # 1e-5 is added to variances


def test_the_reference_is_the_first_picture_in_the_same_branch():
    at, strength = entries(shares(1.0, 0.5, 0.25, branches=3), 9)
    np.testing.assert_array_equal(at, [0, 1, 2] * 3)
    np.testing.assert_array_equal(strength, [0, 0, 0, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25])
    at, strength = entries(shares(1.0, 0.5, branches=3), 4)  # an attention of two branches
    np.testing.assert_array_equal(at, [0, 1] * 2)
    np.testing.assert_array_equal(strength, [0, 0, 0.5, 0.5])


def test_aligned_has_the_moments_of_the_reference():
    x, reference = small_unet.normal(0, 2, 64, 2, 8), 3 * small_unet.normal(1, 2, 64, 2, 8) + 2
    out = aligned(x, reference)
    np.testing.assert_allclose(out.mean(1), reference.mean(1), atol=1e-4)
    np.testing.assert_allclose(out.std(1), reference.std(1), rtol=1e-3)


def test_only_other_pictures_with_a_strength_change():
    inputs = small_unet.inputs()
    plain = small_unet.run(small_unet.params(), inputs, (StyleAligned(),), (shares(0.0, 0.0, 0.0),))
    out = small_unet.run(small_unet.params(), inputs, (StyleAligned(),), (shares(1.0, 0.0, 1.0),))
    np.testing.assert_array_equal(out[:2], plain[:2])
    assert abs(out[2] - plain[2]).max() > 1e-4
    np.testing.assert_allclose(plain, small_unet.run(small_unet.params(), inputs), atol=1e-5)
