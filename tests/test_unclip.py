"""Noise on image embeddings: the reference's arrays, the schedule's numbers, closed forms.

golden/noise_embedding.npz holds what Stability's CLIPEmbeddingNoiseAugmentation makes of its inputs.
"""

import jax.numpy as jnp
import numpy as np

from sdjax.diffusion import unclip

import reference


def test_labels_equal_the_reference():
    arrays = reference.golden("noise_embedding")
    got = unclip.noise_embedding(*(arrays[k] for k in ("embedding", "level", "noise", "mean", "std")))
    want = arrays["out"]
    assert got.shape == want.shape
    assert np.linalg.norm(got - want) < 2e-5 * np.linalg.norm(want)  # float32 rounding


def test_noise_is_put_on_what_has_mean_zero_and_deviation_one():
    # The reference: acp[0] = 0.9999587158, [50] = 0.9917246847, [500] = 0.4922851725
    for level, a in ((0, 0.9999587158), (50, 0.9917246847), (500, 0.4922851725)):
        embedding, noise = np.float32([[3.0, -1.0]]), np.float32([[0.5, 2.0]])
        mean, std = np.float32([1.0, -1.0]), np.float32([2.0, 0.25])
        label = unclip.noise_embedding(embedding, np.array([level]), noise, mean, std)
        want = (a**0.5 * (embedding - mean) / std + (1 - a) ** 0.5 * noise) * std + mean
        np.testing.assert_allclose(label[:, :2], want, rtol=1e-6)
        np.testing.assert_allclose(label[:, 2:], [[np.cos(level), np.sin(level)]], atol=1e-6)


def test_mixing_divides_by_the_sum_of_the_weights():
    labels = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 8)), jnp.float32)
    mixed = unclip.mix_labels(labels, [1.0, 2.0, -0.5])
    np.testing.assert_allclose(mixed, (labels[0] + 2 * labels[1] - 0.5 * labels[2]) / 2.5, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(unclip.mix_labels(labels[:1], [7.0]), labels[0], rtol=1e-6)
