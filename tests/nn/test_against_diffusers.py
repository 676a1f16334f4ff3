"""The networks against diffusers' on random weights, at sizes where a level's side is odd too."""

import json

import jax
import numpy as np
import pytest

from sdjax.config import UNetConfig, VAEConfig
from sdjax.convert.describe.diffusers_config import _unet as config_of_unet
from sdjax.nn import AutoencoderKL, UNet

from checks import relative_error

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]  # the peers' own deprecation warnings
torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")


def to_flax(module, shapes):
    """Returns a module's weights as the Flax tree of `shapes`: names by the one rule, layouts by the leaf's kind."""
    weights = {name: tensor.detach().numpy() for name, tensor in module.state_dict().items()}

    def leaf(path, shape):
        parts = [part for key in path for part in split(key.key)]
        kind = parts.pop()
        a = weights[".".join([*parts, "bias" if kind == "bias" else "weight"])]
        if kind == "kernel":
            a = a.transpose(2, 3, 1, 0) if a.ndim == 4 else a.T
        return a.reshape(shape.shape)  # proj_in of v1 is a 1x1 convolution

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def split(name):
    """Returns ["down_blocks", "0"] of "down_blocks_0", but ["linear_1"] of "linear_1"."""
    head, _, tail = name.rpartition("_")
    return [head, tail] if tail.isdigit() and head != "linear" else [name]


def randomise(module):
    torch.manual_seed(0)
    for parameter in module.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)


@pytest.mark.parametrize("linear", [False, True])
def test_unet_equals_diffusers_at_512_and_at_520_by_456(linear):
    heads = (2, 4, 8, 8) if linear else (4, 4, 4, 4)
    peer = diffusers.UNet2DConditionModel(
        sample_size=64, block_out_channels=(32, 64, 128, 128), cross_attention_dim=64, attention_head_dim=heads,
        use_linear_projection=linear,
    ).eval()  # fmt: skip
    randomise(peer)
    config = UNetConfig(channels=(32, 64, 128, 128), heads=(*heads[:3], 0), mid_heads=heads[3], context_dim=64)
    rng = np.random.default_rng(0)
    context, t = rng.standard_normal((1, 77, 64), np.float32), np.array([500.0], np.float32)
    params = None
    for size in ((64, 64), (65, 57)):  # latents of 512 x 512 and 520 x 456 pixels
        x = rng.standard_normal((1, *size, 4), np.float32)
        if params is None:
            params = to_flax(peer, jax.eval_shape(UNet(config).init, jax.random.key(0), x, t, context)["params"])
        with torch.no_grad():
            want = peer(torch.tensor(x).permute(0, 3, 1, 2), torch.tensor(t), torch.tensor(context)).sample
        got = jax.jit(UNet(config).apply)({"params": params}, x, t, context)
        assert relative_error(got, want.permute(0, 2, 3, 1).numpy()) < 2e-5  # float32 rounding


SMALLER = {  # as BK-SDM-Base and -Tiny, SDXS-512, and a latent consistency model
    "one block a level": {"up": 1, "attention_head_dim": 4},
    "no middle block": {"up": 0, "attention_head_dim": 4, "mid_block_type": None},
    "plain first level": {"up": 0, "attention_head_dim": (2, 4, 8), "mid_block_type": None, "first": "DownBlock2D",
                          "use_linear_projection": True},
    "scale as an input": {"up": 1, "attention_head_dim": 4, "time_cond_proj_dim": 33, "layers_per_block": 2},
}  # fmt: skip


@pytest.mark.parametrize("name", SMALLER)
def test_smaller_unets_and_those_that_take_the_scale_equal_diffusers(name):
    own = dict(SMALLER[name])
    last, first = "DownBlock2D" if own.pop("up") else "CrossAttnDownBlock2D", own.pop("first", "CrossAttnDownBlock2D")
    down = (first, "CrossAttnDownBlock2D", last)
    peer = diffusers.UNet2DConditionModel(
        block_out_channels=(32, 64, 128), cross_attention_dim=64, down_block_types=down,
        up_block_types=tuple(kind.replace("Down", "Up") for kind in reversed(down)),
        **{"layers_per_block": 1, **own},
    ).eval()  # fmt: skip
    randomise(peer)
    config = config_of_unet(json.loads(peer.to_json_string()))
    rng = np.random.default_rng(0)
    x, t = rng.standard_normal((2, 16, 16, 4), np.float32), np.array([700.0, 20.0], np.float32)
    context, scale, condition = rng.standard_normal((2, 7, 64), np.float32), None, None
    if config.guidance_dim is not None:
        scale = np.array([7.0, 1.5], np.float32)
        embed = diffusers.LatentConsistencyModelPipeline.get_guidance_scale_embedding
        condition = embed(None, torch.tensor(scale) - 1, config.guidance_dim)
    inputs = (x, t, context, None, scale)
    params = to_flax(peer, jax.eval_shape(UNet(config).init, jax.random.key(0), *inputs)["params"])
    with torch.no_grad():
        want = peer(
            torch.tensor(x).permute(0, 3, 1, 2), torch.tensor(t), torch.tensor(context), timestep_cond=condition
        ).sample
    got = jax.jit(UNet(config).apply)({"params": params}, *inputs)
    assert relative_error(got, want.permute(0, 2, 3, 1).numpy()) < 2e-5


def test_autoencoder_equals_diffusers():
    channels = (32, 64, 128, 128)
    peer = diffusers.AutoencoderKL(
        block_out_channels=channels, layers_per_block=2, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    ).eval()  # fmt: skip
    randomise(peer)
    vae = AutoencoderKL(VAEConfig(channels=channels))
    image = np.random.default_rng(0).uniform(-1, 1, (1, 64, 96, 3)).astype(np.float32)
    params = {"params": to_flax(peer, jax.eval_shape(vae.init, jax.random.key(0), image)["params"])}
    with torch.no_grad():
        posterior = peer.encode(torch.tensor(image).permute(0, 3, 1, 2)).latent_dist
        decoded = peer.decode(posterior.mean).sample.permute(0, 2, 3, 1).numpy()
    moments = jax.jit(vae.apply, static_argnames="method")(params, image, method="encode")
    mean = posterior.mean.permute(0, 2, 3, 1).numpy()
    assert relative_error(moments[..., :4], mean) < 2e-5
    assert relative_error(vae.apply(params, mean * 0.18215, method="decode"), decoded) < 2e-5
