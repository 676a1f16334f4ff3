"""Resizing: torch's interpolate on random maps, what the kernel must keep, the same for numpy and JAX."""

import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.nn.layers.interpolation import interpolate

SIZES = [((12, 16), (20, 28)), ((50, 70), (32, 24)), ((24, 24), (3, 7)), ((5, 1), (10, 4)), ((7, 9), (7, 18))]
WAYS = [("bilinear", False), ("bilinear", True), ("bicubic", False), ("bicubic", True)]


@pytest.mark.torch
@pytest.mark.parametrize(("method", "align_corners"), WAYS)
@pytest.mark.parametrize(("old", "new"), SIZES)
def test_equals_torchs_interpolate(method, align_corners, old, new):
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).normal(size=(2, *old, 3)).astype(np.float32)
    nchw = torch.from_numpy(np.moveaxis(x, -1, 1).copy())
    want = torch.nn.functional.interpolate(nchw, size=new, mode=method, align_corners=align_corners)
    got = np.moveaxis(interpolate(x, new, method=method, align_corners=align_corners), -1, 1)
    np.testing.assert_allclose(got, want.numpy(), atol=4e-5)  # torch finds the places, of up to 70, in float32


@pytest.mark.parametrize(("method", "align_corners"), WAYS)
def test_a_ramp_stays_a_ramp_and_numpy_equals_jax(method, align_corners):
    rows, columns = np.mgrid[:12, :16].astype(np.float32)
    x = (3 * rows - 2 * columns)[None, :, :, None]
    got = interpolate(x, (30, 40), method=method, align_corners=align_corners)
    places = [np.arange(m) * (n - 1) / (m - 1) if align_corners else (np.arange(m) + 0.5) * n / m - 0.5
              for n, m in ((12, 30), (16, 40))]  # fmt: skip
    want = 3 * places[0][:, None] - 2 * places[1]
    inside = np.s_[6:-6, 6:-6]  # at the border values go on instead of rising
    # Both kernels reproduce linear functions up to float32; a = -0.75 does so only at half of a step and at its ends
    tolerance = 1e-4 if method == "bilinear" else 0.25
    np.testing.assert_allclose(got[0, :, :, 0][inside], want[inside], atol=tolerance)
    np.testing.assert_allclose(got, interpolate(jnp.asarray(x), (30, 40), method=method, align_corners=align_corners))


def test_the_cubic_kernels_a_is_three_quarters():
    impulse = np.zeros((1, 9, 1, 1), np.float32)
    impulse[0, 4] = 1
    got = interpolate(impulse, (18, 1), method="bicubic")[0, :, 0, 0]
    # Keys's kernel with a = -3/4 at distances 1.25, 0.75, 0.25, 0.25, 0.75, 1.25, and 1.75 outside them
    a, near = -0.75, lambda t: (1.25 * t - 2.25) * t * t + 1
    far = lambda t: a * (t**3 - 5 * t**2 + 8 * t - 4)  # noqa: E731
    half = [far(1.75), far(1.25), near(0.75), near(0.25)]
    np.testing.assert_allclose(got[5:13], [*half, *half[::-1]], atol=1e-6)
    assert not got[:5].any()
    assert not got[13:].any()


def test_half_precision_is_kept():
    x = jnp.ones((1, 4, 4, 1), jnp.bfloat16)
    assert interpolate(x, (8, 8), method="bilinear", align_corners=True).dtype == jnp.bfloat16


def test_what_cannot_be_resized_is_refused():
    x = np.ones((1, 4, 4, 1), np.float32)
    with pytest.raises(ValueError, match="one of bilinear, bicubic; got 'nearest'"):
        interpolate(x, (8, 8), method="nearest")
    with pytest.raises(ValueError, match="at least one row"):
        interpolate(x, (0, 8), method="bilinear")
