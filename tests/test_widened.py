"""Differences to a UNet whose first convolution takes further channels."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from sdjax.convert.errors import CheckpointError
from sdjax.convert.names.tables import tensor_shapes
from sdjax.convert.parts.widened import load_widened

import models
import reference


def difference(channels: int) -> dict[str, np.ndarray]:
    unet = dataclasses.replace(models.TINY.unet, in_channels=channels)
    shapes = tensor_shapes(dataclasses.replace(models.TINY, unet=unet), "diffusers")
    return {
        name.removeprefix("unet/"): reference.fill(name, shape).astype(np.float32)
        for name, shape in shapes.items()
        if name.startswith("unet/")
    }


@pytest.mark.parametrize("channels", [8, 12])
def test_a_difference_is_added_and_further_channels_to_zeros(tmp_path, channels):
    tensors, base = difference(channels), models.random_params(models.TINY)
    save_file(tensors, tmp_path / "light.safetensors")
    got = load_widened(tmp_path / "light.safetensors", models.TINY, base)
    assert (got.name, got.config.unet.in_channels) == ("light", channels)
    first, change = got.params["unet"]["conv_in"]["kernel"], tensors["conv_in.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(first[:, :, :4], base["unet"]["conv_in"]["kernel"] + change[:, :, :4])
    np.testing.assert_array_equal(first[:, :, 4:], change[:, :, 4:])
    bias = base["unet"]["conv_out"]["bias"] + tensors["conv_out.bias"]
    np.testing.assert_array_equal(got.params["unet"]["conv_out"]["bias"], bias)
    assert got.params["vae"] is base["vae"]
    half = jax.tree.map(lambda a: np.asarray(a, jnp.bfloat16), base)
    kept = load_widened(tmp_path / "light.safetensors", models.TINY, half).params["unet"]
    assert {leaf.dtype for leaf in jax.tree.leaves(kept)} == {jnp.dtype(jnp.bfloat16)}


def test_other_files_are_refused_by_name(tmp_path):
    base, path = models.random_params(models.TINY), tmp_path / "light.safetensors"
    save_file(difference(4), path)
    with pytest.raises(CheckpointError, match="none with a first convolution of more channels"):
        load_widened(path, models.TINY, base)
    save_file({**difference(8), "other.weight": np.zeros(3, np.float32)}, path)
    with pytest.raises(CheckpointError, match="other.weight"):
        load_widened(path, models.TINY, base)
    save_file({**difference(8), "conv_out.bias": np.zeros(3, np.float32)}, path)
    with pytest.raises(CheckpointError, match="conv_out.bias"):
        load_widened(path, models.TINY, base)
