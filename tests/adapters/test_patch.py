"""The mechanism of patches: their order, their arrays, and that each layer is patched once."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest
import small_unet

from sdjax.adapters import patched, path_of
from sdjax.nn import UNet


@dataclasses.dataclass(frozen=True)
class Affine:
    """Multiplies a layer's output by a shared number and adds one of each image."""

    layer: str

    def intercept(self, shared: Any, own: Any) -> Callable[..., Any]:
        def intercept(method, args, kwargs, context):
            out = method(*args, **kwargs)
            if path_of(context) != self.layer:
                return out
            return out * shared + own.reshape(-1, *(1,) * (out.ndim - 1))

        return intercept


class Network(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1, use_bias=False, name="layer")(x)


def test_each_patch_changes_what_those_before_it_made():
    params, x = {"layer": {"kernel": np.full([1, 1], 5.0)}}, np.ones([2, 1])
    patches, own = [Affine("layer"), Affine("layer")], [np.array([1.0, 2.0]), np.array([10.0, 20.0])]
    with patched(patches, shared=[3.0, 7.0], own=own):
        got = Network().apply({"params": params}, x)
    np.testing.assert_array_equal(got, [[(5 * 3 + 1) * 7 + 10], [(5 * 3 + 2) * 7 + 20]])
    np.testing.assert_array_equal(Network().apply({"params": params}, x), [[5], [5]])  # and nothing stays behind


def test_as_many_arrays_as_patches():
    with pytest.raises(ValueError, match="1 patches"), patched([Affine("layer")], shared=[], own=[None]):
        pass


@dataclasses.dataclass(frozen=True)
class Count:
    """Counts the calls of every layer."""

    calls: dict[str, int] = dataclasses.field(default_factory=dict, hash=False)

    def intercept(self, shared: None, own: None) -> Callable[..., Any]:
        def intercept(method, args, kwargs, context):
            self.calls[path_of(context)] = self.calls.get(path_of(context), 0) + 1
            return method(*args, **kwargs)

        return intercept


@pytest.mark.parametrize("remat", ["none", "blocks", "products"])
def test_every_layer_is_called_once_by_its_name_also_under_gradient_checkpointing(remat):
    count = Count()
    with patched([count]):
        unet = UNet(small_unet.CONFIG, remat=remat)
        jax.eval_shape(unet.apply, {"params": small_unet.params()}, *small_unet.inputs())
    assert set(count.calls.values()) == {1}
    block = "up_blocks_0/attentions_1/transformer_blocks_0"
    assert {"", "conv_in", "down_blocks_0/resnets_0/conv1", "mid_block/attentions_0", "up_blocks_0/joins_1",
            f"{block}/attn1/attend", f"{block}/attn2/to_k", f"{block}/ff"} <= set(count.calls)  # fmt: skip
