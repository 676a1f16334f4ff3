"""DINOv2, CLIP's towers and Inception against timm, open_clip and pytorch-fid, on weights made from names.

golden/judges.npz is made by tests/judges_peer.py.
"""

import json

import jax
import jax.numpy as jnp
import judges_peer as peer
import numpy as np
import pytest
from safetensors.numpy import save_file

from sdjax import convert
from sdjax.nn.metrics.dinov2 import position_matrix
from sdjax.nn.metrics.inception import average
from sdjax.nn.networks import NETWORKS

import reference

TOLERANCE = 1e-5  # of float32 sums in another order, relative to the largest


@pytest.fixture(scope="module")
def golden():
    return reference.golden("judges")


def written(golden, name, folder):
    """Returns the path of a file with the tensors of the reference's network."""
    save_file(peer.filled(json.loads(str(golden["shapes"]))[name]), folder / "network.safetensors")
    return folder / "network.safetensors"


def apply(name, config, params, *inputs):
    return jax.jit(lambda p, *x: NETWORKS[name].build(config).apply({"params": p}, *x))(params, *inputs)


def assert_close(got, want):
    assert got.shape == want.shape
    assert np.abs(np.asarray(got) - want).max() < TOLERANCE * np.abs(want).max()


def test_dinov2_equals_timms(golden, tmp_path):
    config, params = convert.load_dinov2(written(golden, "dinov2", tmp_path))
    assert_close(apply("dinov2", config, params, peer.images(28)), golden["dinov2"])


def test_clip_equals_open_clips(golden, tmp_path):
    params = convert.load_clip_pair(written(golden, "clip", tmp_path), peer.CONFIG)
    image, text, scale = apply("clip_pair", peer.CONFIG, params, peer.images(14), peer.IDS)
    assert_close(image, golden["clip/image"])
    assert_close(text, golden["clip/text"])
    assert scale == params["logit_scale"]


@pytest.mark.slow
def test_inception_equals_pytorch_fids(golden, tmp_path):
    config, params = convert.load_inception(written(golden, "inception", tmp_path))
    pool, logits = apply("inception", config, params, peer.images(peer.SMALL))
    assert_close(pool, golden["inception"])
    assert_close(logits, np.asarray(pool) @ np.asarray(params["fc"]["kernel"]))  # no bias


def test_average_pooling_leaves_the_padding_out():
    x = jnp.arange(12.0).reshape(1, 3, 4, 1)
    got = average(x)[0, :, :, 0]
    np.testing.assert_allclose(got[0, 0], np.mean([0, 1, 4, 5]))
    np.testing.assert_allclose(got[2, 1], np.mean([4, 5, 6, 8, 9, 10]))
    np.testing.assert_allclose(got[1, 2], np.mean([1, 2, 3, 5, 6, 7, 9, 10, 11]))


@pytest.mark.parametrize("smooth", [False, True])
def test_resized_positions_keep_a_constant_and_are_mirrored(smooth):
    matrix = position_matrix(37, 16, smooth=smooth)
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-6)
    mirrored = np.abs(matrix - matrix[::-1, ::-1]).max()
    assert (mirrored < 1e-5) == smooth  # the others count a tenth of a patch too many
    np.testing.assert_array_equal(position_matrix(37, 37, smooth=smooth), np.eye(37))
