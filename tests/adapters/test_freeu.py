"""FreeU: its filter and factors by the published formulas, and the layers that they are applied to."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_unet

from sdjax.adapters import FreeU, FreeUNumbers, patched
from sdjax.adapters.freeu import damped, strengthened
from sdjax.adapters.patch import path_of
from sdjax.nn import UNet

import models


def numbers(*rows: tuple[float, float, float, float]) -> FreeUNumbers:
    return FreeUNumbers(*jnp.array(rows, jnp.float32).T)


def filtered(x: np.ndarray, s: float) -> np.ndarray:
    """Returns the map [h, w, c] by the original's Fourier filter with threshold 1."""
    spectrum = np.fft.fftshift(np.fft.fft2(x, axes=(0, 1)), axes=(0, 1))
    h, w = x.shape[0] // 2, x.shape[1] // 2
    spectrum[h - 1 : h + 1, w - 1 : w + 1] *= s
    return np.fft.ifft2(np.fft.ifftshift(spectrum, axes=(0, 1)), axes=(0, 1)).real


@pytest.mark.parametrize("size", [(8, 8), (6, 9), (5, 3), (2, 4)])
def test_skips_are_filtered_as_by_fourier_transforms(size):
    x = small_unet.normal(0, 2, *size, 3)
    got = damped(x, jnp.array([0.2, 0.9]))
    for i, s in enumerate((0.2, 0.9)):
        np.testing.assert_allclose(got[i], filtered(x[i], s), atol=1e-6)  # float32 sums of at most 64 numbers


def test_features_are_scaled_by_the_original_formulas():
    x, b = small_unet.normal(1, 2, 4, 5, 6), jnp.array([1.5, 0.5])
    mean = x.mean(-1, keepdims=True)
    low, high = mean.min((1, 2), keepdims=True), mean.max((1, 2), keepdims=True)
    factors = b.reshape(2, 1, 1, 1), 1 + (b.reshape(2, 1, 1, 1) - 1) * (mean - low) / (high - low)
    for version, factor in enumerate(factors, start=1):
        want = np.concatenate([x[..., :3] * factor, x[..., 3:]], -1)
        np.testing.assert_allclose(strengthened(x, b, version), want, rtol=1e-5)
    even = jnp.ones([2, 4, 5, 6])  # no position stands out, and nothing is divided by 0
    np.testing.assert_array_equal(strengthened(even, b, 2), even)


def test_ones_are_the_plain_network_for_one_image_of_a_batch():
    own = numbers((1, 1, 1, 1), (1.3, 1.0, 0.9, 1.0), (1.0, 1.4, 1.0, 0.2))
    got = small_unet.run(small_unet.params(), small_unet.inputs(), (FreeU(),), (own,))
    plain = small_unet.run(small_unet.params(), small_unet.inputs())
    np.testing.assert_array_equal(got[0], plain[0])
    assert np.abs(got[1] - plain[1]).max() > 0.01
    np.testing.assert_array_equal(got[2], plain[2])  # this network has no second up block for b2 and s2


@dataclasses.dataclass(frozen=True)
class Inputs:
    """A patch that changes nothing and notes what the layers called joins are given."""

    seen: dict[str, tuple[Any, Any]] = dataclasses.field(default_factory=dict, hash=False)

    def intercept(self, shared: None, own: None) -> Callable[..., Any]:
        def intercept(method, args, kwargs, context):
            if "joins_" in path_of(context):
                self.seen[path_of(context)] = args
            return method(*args, **kwargs)

        return intercept


def test_blocks_get_the_numbers_that_are_theirs():
    config = dataclasses.replace(small_unet.CONFIG, channels=(32, 64, 128), heads=(0, 0, 0),
                                 transformer_depth=(1, 1, 1), self_attention=(True, True, True))  # fmt: skip
    x, t, context = small_unet.inputs(1)
    shapes = jax.eval_shape(UNet(config).init, jax.random.key(0), x, t, context)["params"]
    # Features have 128 channels at the joins of block 0 and the first of block 1, then 64 up to the first of block 2
    for patch, joins in (FreeU(), (1, 1, 2, 2, 0, 0)), (FreeU(blocks="comfyui"), (1, 1, 1, 2, 2, 0)):
        before, after, traced = Inputs(), Inputs(), {}

        def run(params, before=before, after=after, patch=patch):
            with patched([after, patch, before], own=[None, numbers((2.0, 3.0, 1.0, 1.0)), None]):
                UNet(config).apply({"params": params}, x, t, context)
            return {path: (before.seen[path][0], after.seen[path][0]) for path in before.seen}

        traced = jax.jit(run)(models.fill_tree(shapes))
        assert len(traced) == 6
        for (_, (was, became)), numbered in zip(sorted(traced.items()), joins, strict=True):
            factor, half = {1: 2.0, 2: 3.0, 0: 1.0}[numbered], was.shape[-1] // 2
            np.testing.assert_array_equal(became[..., :half], factor * was[..., :half])
            np.testing.assert_array_equal(became[..., half:], was[..., half:])
