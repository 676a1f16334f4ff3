"""The autoencoder's losses against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from models_to_train import MODEL

from sdjax.train import autoencoder
from sdjax.train.autoencoder import kl_divergence, reconstruction_error


@pytest.mark.parametrize(("mean", "sigma"), [(0.0, 1.0), (0.7, 0.2), (-2.0, 1.5)])
def test_kl_divergence_is_the_integral_that_defines_it(mean, sigma):
    p, q = scipy.stats.norm(mean, sigma), scipy.stats.norm()
    expected, _ = scipy.integrate.quad(
        lambda x: p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), mean - 12 * sigma, mean + 12 * sigma
    )
    moments = jnp.array([mean, 2 * np.log(sigma)], jnp.float32).reshape(1, 1, 1, 2)
    assert float(kl_divergence(moments)[0, 0, 0, 0]) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_reconstruction_error_of_a_ramp():
    # off by 0.5 on the left half: half the pixels, and one of 7 columns of differences, where it ends
    image = jnp.zeros([2, 8, 8, 3])
    other = image.at[:, :, :4].add(0.5)
    pixels, edges = reconstruction_error(image, other, 0.3)
    assert float(pixels) == pytest.approx(0.25)
    assert float(edges) == pytest.approx(0.3 * 0.5 / 7)


def test_autoencoder_loss_is_the_sum_of_its_parts(monkeypatch):
    class Autoencoder:
        """Takes the first channel for mean and log variance, and a latent for a grey picture."""

        def __init__(self, config):
            pass

        def apply(self, variables, x, method):
            first = x[..., :1]
            return jnp.repeat(first, 8, -1) if method == "encode" else jnp.repeat(first, 3, -1)

    monkeypatch.setattr(autoencoder, "AutoencoderKL", Autoencoder)
    loss = autoencoder.autoencoder_loss(MODEL.vae, kl_weight=0.01, edge_weight=0.5)
    images = np.full((200, 16, 16, 3), 255, np.uint8)  # 1, so that moments are N(1, e)
    keys = jax.random.split(jax.random.key(0), 200)
    total, parts = loss({"vae": {}}, {}, {"image": images}, keys, 0)
    # decoded from s (1 + e^0.5 noise): |s - 1 + s e^0.5 noise| in the mean, and KL = (1 + e - 1 - 1) / 2
    s = MODEL.vae.scale_factor
    folded = scipy.stats.foldnorm(abs(s - 1) / (s * np.e**0.5), scale=s * np.e**0.5)
    assert float(parts["pixels"]) == pytest.approx(folded.mean(), abs=4 * folded.std() / (200 * 256) ** 0.5)
    assert float(parts["kl"]) == pytest.approx((np.e - 1) / 2, rel=1e-5)
    assert float(total) == pytest.approx(float(parts["pixels"] + parts["edges"] + 0.01 * parts["kl"]), rel=1e-6)
