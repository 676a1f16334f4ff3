"""ControlNet and T2I-Adapter against diffusers' on random weights, read from their own names, at odd sizes too."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from sdjax import convert
from sdjax.config import ModelConfig, TextConfig, UNetConfig
from sdjax.nn.controlnet import ControlNet
from sdjax.nn.t2i import T2IAdapter

from checks import relative_error

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]  # the peers' own deprecation warnings
torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

MODEL = ModelConfig(
    name="small",
    unet=UNetConfig(channels=(32, 64, 128, 128), heads=(4, 4, 4, 0), mid_heads=4, context_dim=64),
    text=TextConfig(width=64, layers=1, heads=2),
)


def arrays(module):
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=(parameter[0].numel() if parameter.ndim > 1 else 1) ** -0.5)
    return {name: tensor.detach().numpy() for name, tensor in module.state_dict().items()}


def to_torch(x):
    return torch.from_numpy(np.moveaxis(x, -1, 1).copy())


def nhwc(x):
    return np.moveaxis(x.detach().numpy(), 1, -1)


@pytest.mark.parametrize(("order", "pooled"), [("rgb", False), ("bgr", True)])
def test_controlnet_equals_diffusers(order, pooled):
    peer = diffusers.ControlNetModel(
        block_out_channels=(32, 64, 128, 128), cross_attention_dim=64, attention_head_dim=4,
        controlnet_conditioning_channel_order=order, global_pool_conditions=pooled,
    ).eval()  # fmt: skip
    net = convert.load_controlnet(arrays(peer), MODEL, pooled=pooled)
    config = dataclasses.replace(net.config, blue_first=order == "bgr")
    rng = np.random.default_rng(0)
    x, context = rng.standard_normal((1, 9, 7, 4), np.float32), rng.standard_normal((1, 5, 64), np.float32)
    hint = rng.random((1, 72, 56, 3), np.float32)
    with torch.no_grad():
        skips, middle = peer(
            to_torch(x), torch.tensor([500.0]), torch.from_numpy(context), to_torch(hint), return_dict=False
        )
    out = ControlNet(config).apply({"params": net.params}, x, jnp.array([500.0]), context, hint)
    for mine, theirs in zip([*out.skips, out.middle], [*skips, middle], strict=True):
        assert relative_error(mine, nhwc(theirs)) < 1e-5


@pytest.mark.parametrize("kind", ["full_adapter", "light_adapter"])
def test_t2i_adapters_equal_diffusers(kind):
    channels = [32, 64, 128, 128] if kind == "full_adapter" else [32, 64, 128]  # a light one repeats the last
    peer = diffusers.T2IAdapter(in_channels=3, channels=channels, num_res_blocks=2, adapter_type=kind).eval()
    net = convert.load_t2i(arrays(peer))
    hint = np.random.default_rng(0).random((1, 72, 56, 3), np.float32)  # sides 9 and 7, 5 and 4, 3 and 2
    with torch.no_grad():
        theirs = peer(to_torch(hint))
    mine = T2IAdapter(net.config).apply({"params": net.params}, hint)
    for one, other in zip(mine, theirs, strict=True):
        assert relative_error(one, nhwc(other)) < 1e-5
