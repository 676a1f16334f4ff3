"""Counted floating-point operations against formulas, hand counts and XLA."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models_to_train import MODEL

from sdjax.config import DepthConfig, UNetConfig, VisionConfig
from sdjax.configs import autoencoder, finetune
from sdjax.description import build
from sdjax.nn import UNet
from sdjax.nn.layers import conv
from sdjax.nn.layers.conv import POINT, Conv
from sdjax.nn.layers.dense import Dense
from sdjax.nn.layers.multihead import Attend
from sdjax.train.build import Setup
from sdjax.train.config import TrainConfig
from sdjax.train.planning.flops import convolution, count


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def counted(module, *args, remat="none"):
    """Returns the counts of the gradient of a module's sum with respect to its parameters."""
    params = jax.eval_shape(module.init, jax.random.key(0), *args).get("params", {})
    return count(
        lambda params, *args: (module.apply({"params": params}, *args).sum(), None), params, *args, remat=remat
    )


class Network(nn.Module):
    """Two linear layers."""

    @nn.compact
    def __call__(self, x):
        return Dense(13, name="second")(jnp.tanh(Dense(11, name="first")(x)))


def test_gradients_of_a_network_are_twice_its_forward_pass_less_the_inputs_gradient():
    flops = counted(Network(), shape(5, 7))
    first, second = 2 * 5 * 7 * 11, 2 * 5 * 11 * 13
    assert flops.forward == first + second
    assert flops.backward == first + 2 * second
    assert flops.by_layer == {"Network/first": 2 * first, "Network/second": 3 * second}
    assert flops.recomputed == 0
    assert flops.table().splitlines()[-1].split()[0] == "total"


def test_only_what_depends_on_the_trained_parameters_has_a_gradient():
    network, x = Network(), shape(5, 7)
    params = jax.eval_shape(network.init, jax.random.key(0), x)["params"]
    first, second = 2 * 5 * 7 * 11, 2 * 5 * 11 * 13

    def loss(trained, frozen, x):
        return network.apply({"params": {**frozen, **trained}}, x).sum(), None

    def part(name):
        return {name: params[name]}

    assert count(loss, part("first"), part("second"), x).backward == first + second  # the way back to the first
    assert count(loss, part("second"), part("first"), x).backward == second

    def stopped(params, x):
        return jax.lax.stop_gradient(network.apply({"params": params}, x)).sum() + params["first"]["bias"].sum(), None

    def twice(params, x):
        return network.apply(
            {"params": jax.lax.stop_gradient(params)}, network.apply({"params": params}, x)[:, :7]
        ).sum(), None

    assert count(stopped, params, x).model == 3 * second + 2 * first  # of the layers' own: what follows is not seen
    assert count(twice, params, x).backward == (first + 2 * second) + (first + second)


@pytest.mark.parametrize(
    ("x", "sides", "strides", "padding"),
    [
        ((2, 8, 9, 6), (3, 3), (1, 1), ((1, 1), (1, 1))),
        ((2, 8, 9, 6), (3, 3), (1, 1), ((0, 0), (0, 0))),
        ((2, 8, 9, 6), (3, 3), (2, 2), ((0, 1), (0, 1))),
        ((2, 8, 9, 6), (3, 2), (2, 1), ((1, 1), (1, 1))),
        ((2, 8, 9, 6), (1, 1), (1, 1), POINT),
        ((1, 28, 28, 3), (14, 14), (14, 14), POINT),
    ],
    ids=["plain", "valid", "strided", "oblong", "point", "patches"],
)
def test_a_convolution_counts_the_products_that_it_adds_up(x, sides, strides, padding):
    # With ones for both, every output is the number of products in its sum
    ones = jnp.ones(x), jnp.ones((*sides, x[-1], 4))
    products = int(conv.convolution(*ones, strides=strides, padding=padding).sum())
    assert convolution(x, sides, 4, strides, padding) == 2 * products
    assert counted(Conv(4, sides, strides, padding), shape(*x)).forward == 2 * products


class Attending(nn.Module):
    """Attention of an input's projection to a context."""

    @nn.compact
    def __call__(self, x, context):
        b, n, d = x.shape
        q = Dense(d, use_bias=False, name="q")(x)
        q, k, v = (a.reshape(b, -1, 4, d // 4) for a in (q, context, context))
        return Attend(name="attend")(q, k, v)


def test_attention_is_two_products_of_queries_by_keys_and_a_fixed_context_has_no_gradient():
    b, n, m, d = 2, 256, 128, 64
    flops = counted(Attending(), shape(b, n, d), shape(b, m, d))
    product = 2 * b * n * m * d
    assert flops.forward == 2 * product + 2 * b * n * d * d
    assert flops.by_layer["Attending/attend"] == 2 * product + 2 * product  # of queries and weights alone


class Unknown(nn.Module):
    """A layer with a kernel that nothing counts."""

    @nn.compact
    def __call__(self, x):
        return x @ self.param("kernel", nn.initializers.zeros, (7, 7))


def test_a_layer_that_nothing_counts_is_refused():
    with pytest.raises(ValueError, match="no rule counts the operations of Unknown"):
        counted(Unknown(), shape(5, 7))


WIDE = dataclasses.replace(
    MODEL,
    image_size=32,  # 8 x 8 latents, whose attention is one product: XLA counts the body of a loop once
    unet=dataclasses.replace(
        MODEL.unet,
        channels=(128,),
        heads=(2,),
        transformer_depth=(1,),
        self_attention=(True,),
        context_dim=64,
        norm_groups=16,
    ),
    vae=dataclasses.replace(MODEL.vae, channels=(64, 64, 64), norm_groups=16),
    text=dataclasses.replace(MODEL.text, width=64),
)
DEPTH = DepthConfig(
    image_size=64, width=96, layers=2, heads=2, taps=(0, 1), stem_width=32, stage_widths=(64, 64, 64),
    stage_depths=(1, 1, 1), norm_groups=8, neck_widths=(64, 64), features=64,
)  # fmt: skip
VISION = VisionConfig(image_size=56, patch_size=14, width=128, layers=1, heads=2, projection=64)


def unet(**changes):
    return dataclasses.replace(WIDE, unet=dataclasses.replace(WIDE.unet, **changes))


# By kind: the model, and what of the configuration is not as in fine-tuning
TRAININGS = {
    "text": (WIDE, {}),
    "text and encoder": (WIDE, {"train": ("unet", "text")}),
    "encoder alone": (WIDE, {"train": ("text",), "batch_size": 1}),
    "inpainting": (unet(in_channels=9), {}),
    "depth": (dataclasses.replace(unet(in_channels=5), depth=DEPTH), {}),
    "unclip": (dataclasses.replace(unet(label_dim=128), vision=VISION, noise_stats=64), {}),
    "upscaling": (unet(in_channels=7, num_classes=350), {}),
    "autoencoder": (WIDE, {}),
}


def setup_of(kind):
    """Returns the description of a training of a kind."""
    model, changes = TRAININGS[kind]
    config = (autoencoder if kind == "autoencoder" else finetune).get_config().to_dict()
    config["model"]["scratch"] = "sd1"
    config |= {"batch_size": 2, **changes}
    if kind == "autoencoder":
        config["autoencoder"]["lpips"] = ("vgg.pth", "lpips.pth")
        config["data"]["side"] = model.image_size
    return Setup(build(TrainConfig, config), model)


def cost(setup, compiled=False):
    """Returns the operations of the loss and its gradient as XLA counts them."""
    state, frozen = setup.shapes
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), setup.config.batch_size))
    gradient = jax.jit(jax.grad(setup.loss_of_trained(setup.empty_shape()), has_aux=True))
    args = frozen, state.ema_params, setup.batch_shapes(), keys, shape(dtype=jnp.int32)
    lowered = gradient.lower(state.params, *args)
    return (lowered.compile() if compiled else lowered).cost_analysis()["flops"]


@pytest.fixture
def plain_convolutions(monkeypatch):
    """Winograd's method takes fewer multiplications than the convolution that it computes."""
    monkeypatch.setattr(conv, "method_on_cpu", lambda *args: "xla")


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind == "text" else pytest.mark.slow) for kind in TRAININGS]
)
def test_a_training_of_every_kind_agrees_with_xlas_count(kind, plain_convolutions):
    setup = setup_of(kind)
    flops = setup.flops()
    # XLA adds what is not counted: norms, activations and softmax, each some operations a number
    xla = cost(setup)
    assert 0.92 * xla < flops.model < xla
    assert sum(flops.by_layer.values()) == flops.model == sum(flops.groups(2).values())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["text", "encoder alone"])
def test_a_training_agrees_with_xlas_count_of_the_compiled_program(kind, plain_convolutions):
    setup = setup_of(kind)
    xla = cost(setup, compiled=True)
    assert 0.95 * xla < setup.flops().model < xla


def multiply_adds(conv, *, products=True, n=64, channels=(320, 640, 1280, 1280), words=77, width=768):
    """Returns the multiply-adds of Stable Diffusion v1's UNet, from the layers that its paper's table lists.

    `conv(n, stride)` gives those of a 3x3 convolution for one pair of channels on an n x n map, padded by 1.
    """

    def resnet(n, c, d):
        return conv(n, 1) * (c * d + d * d) + 1280 * d + (n * n * c * d if c != d else 0)

    def transformer(n, c):
        s = n * n
        linear = 2 * s * c * c + 6 * s * c * c + 2 * words * width * c + s * c * 8 * c + s * 4 * c * c
        return linear + products * (2 * s * s * c + 2 * s * words * c)

    total, c, skips = 320 * 1280 + 1280 * 1280 + conv(n, 1) * 4 * 320, 320, [320]
    for level, d in enumerate(channels):
        for _ in range(2):
            total += resnet(n, c, d) + (transformer(n, d) if level < 3 else 0)
            c = d
            skips.append(c)
        if level < 3:
            total += conv(n, 2) * c * c
            n //= 2
            skips.append(c)
    total += 2 * resnet(n, c, c) + transformer(n, c)
    for level in (3, 2, 1, 0):
        for _ in range(3):
            total += resnet(n, c + skips.pop(), channels[level])
            c = channels[level]
            total += transformer(n, c) if level < 3 else 0
        if level:
            n *= 2
            total += conv(n, 1) * c * c
    return total + conv(n, 1) * c * 4


def test_the_unet_of_stable_diffusion_v1_is_counted_as_by_hand():
    def padded(n, stride):
        return 9 * (n // stride) ** 2

    def unpadded(n, stride):
        return (3 * n - 2) ** 2 if stride == 1 else (3 * n // 2 - 1) ** 2  # a row of padding reaches 3 n / stride taps

    # Published: 338.7 billion (BK-SDM, arXiv 2305.15798, table 1; thop counts padding and leaves out q k and a v)
    assert multiply_adds(padded, products=False) == pytest.approx(338.7e9, rel=1e-3)
    assert multiply_adds(padded) == pytest.approx(401.6e9, rel=1e-3)

    x, t, context = shape(1, 64, 64, 4), shape(1), shape(1, 77, 768)
    params = jax.eval_shape(UNet(UNetConfig()).init, jax.random.key(0), x, t, context)
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == 859_520_964

    def loss(nothing, params, *args):
        return UNet(UNetConfig()).apply(params, *args).sum(), None

    flops = count(loss, {}, params, x, t, context)
    assert (flops.forward, flops.backward) == (2 * multiply_adds(unpadded), 0)


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["blocks", "products"])
def test_what_is_computed_again_is_kept_apart(remat):
    x, t, context = shape(1, 32, 32, 4), shape(1), shape(1, 77, 64)
    config = TRAININGS["text"][0].unet
    plain, again = counted(UNet(config), x, t, context), counted(UNet(config, remat=remat), x, t, context, remat=remat)
    assert plain.recomputed == 0
    assert (again.forward, again.backward, again.by_layer) == (plain.forward, plain.backward, plain.by_layer)
    blocks = [path for path in plain.by_layer if "resnets" in path or "attentions" in path]
    inside = [path for path in blocks if remat == "blocks" or path.endswith("/attend")]
    third = sum(plain.by_layer[path] for path in inside) / 3  # a forward pass, beside a gradient of either factor
    assert again.recomputed == pytest.approx(third, rel=0.02)  # the context and the timestep have no gradient
