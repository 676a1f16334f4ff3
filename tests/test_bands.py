"""TAESD over large pictures: in bands of rows it makes the same numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.adapters.patch import patched
from sdjax.adapters.seamless import Seamless
from sdjax.config import VAEConfig
from sdjax.nn.networks import NETWORKS
from sdjax.nn.taesd import TinyAutoencoder
from sdjax.pipeline import bands, tiling
from sdjax.pipeline.programs import VAEProgram

import models

TINY = VAEConfig(channels=(4,) * 3, num_res_blocks=1, norm_groups=4, kind="tiny", scale_factor=1.0)
PARAMS = models.fill_tree(NETWORKS["vae"].shapes(TINY))


@pytest.mark.parametrize(("method", "shape"), [("decode", (1, 50, 3, 4)), ("encode", (1, 200, 12, 3))])
@pytest.mark.parametrize("seamless", ["", pytest.param("y", marks=pytest.mark.slow)])
def test_bands_make_the_numbers_of_the_whole_map(monkeypatch, method, shape, seamless):
    x = jax.random.normal(jax.random.key(0), shape)
    with patched([Seamless(seamless)] if seamless else []):
        whole = TinyAutoencoder(TINY).apply({"params": PARAMS}, x, method=method)
    monkeypatch.setattr(tiling, "LARGE", 0)
    monkeypatch.setattr(bands, "BAND", 1)
    monkeypatch.setattr(bands, "LEAST", 8)
    made = VAEProgram(TINY, "float32", seamless).run(PARAMS, x, method)
    np.testing.assert_allclose(made, whole, atol=1e-5 * float(jnp.abs(whole).max()))  # sums of other shapes


def test_a_narrower_margin_shows():
    x = jax.random.normal(jax.random.key(0), (1, 50, 3, 4))
    decode = lambda z: TinyAutoencoder(TINY).apply({"params": PARAMS}, z, method="decode")  # noqa: E731
    whole, cut = decode(x), bands.in_bands(decode, x, 8, 2, (1, 4))
    assert jnp.abs(cut - whole).max() > 1e-3 * jnp.abs(whole).max()
