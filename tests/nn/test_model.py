"""The three networks: parameter counts of the releases, reference outputs, precision, sizes, labels, checkpointing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax import configs, convert
from sdjax.config import UNetConfig
from sdjax.nn import AutoencoderKL, TextEncoder, UNet, param_counts
from sdjax.nn.unet import REMATS

import reference
from checks import relative_error

ALIKE = ("v2_v", "v2_inpaint")  # v2_base's networks, the latter's with more channels, as v2_depth's
FAMILIES = ("v1", "v2_base", *(pytest.param(name, marks=pytest.mark.slow) for name in ALIKE), "v2_depth", "v2_unclip",
            "x4_upscaler")  # fmt: skip

# Small networks with every option on: widths that differ, two transformers deep, an odd number of levels
SMALL = UNetConfig(channels=(32, 64), heads=(2, 4), mid_heads=4, transformer_depth=(1, 2), self_attention=(True, False),
                   context_dim=16, num_res_blocks=1)  # fmt: skip


@functools.cache
def reference_model(family):
    """Returns (config, params, arrays) of a small model of the family and what the reference makes of it."""
    from parity_models import config_from_spec

    entry = reference.families()[family]
    tensors = reference.fill_all(entry["manifest"], entry["spec"]["weight_seed"])
    config, params = convert.load(tensors, config=config_from_spec(entry["spec"]))
    return config, params, reference.golden(f"modules_{family}")


def unet_inputs(arrays):
    y = arrays.get("y")
    return np.moveaxis(arrays["x"], 1, -1), arrays["t"].astype(np.float32), arrays["context"], y


@pytest.mark.few(4)
@pytest.mark.parametrize("name", reference.RELEASED)
def test_parameter_counts_are_the_releases(name):
    counts = param_counts(configs.get(name))
    assert (counts["unet"], counts["vae"], counts["text"]) == reference.RELEASED[name]


@pytest.mark.few(2)
@pytest.mark.parametrize("family", FAMILIES)
def test_unet_and_text_encoder_equal_the_reference(family):
    config, params, arrays = reference_model(family)
    x, t, context, y = unet_inputs(arrays)
    got = jax.jit(UNet(config.unet).apply)({"params": params["unet"]}, x, t, context, y)
    assert relative_error(got, np.moveaxis(arrays["unet"], 1, -1)) < 2e-5  # float32 rounding of two implementations
    got = jax.jit(TextEncoder(config.text).apply)({"params": params["text"]}, arrays["ids"])
    assert relative_error(got, arrays["text"]) < 2e-5


@pytest.mark.few(1)
@pytest.mark.parametrize("family", ["v1", "x4_upscaler"])
def test_autoencoders_equal_the_reference(family):
    config, params, arrays = reference_model(family)
    vae = AutoencoderKL(config.vae)
    run = jax.jit(vae.apply, static_argnames="method")
    moments = run({"params": params["vae"]}, np.moveaxis(arrays["image"], 1, -1), method="encode")
    assert relative_error(moments, np.moveaxis(arrays["moments"], 1, -1)) < 2e-5
    latent = np.moveaxis(arrays["z"], 1, -1) * config.vae.scale_factor
    image = run({"params": params["vae"]}, latent, method="decode")
    assert relative_error(image, np.moveaxis(arrays["decoded"], 1, -1)) < 2e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        ("v1", "bfloat16"),
        ("v2_base", "float16"),
        pytest.param("v1", "float16", marks=pytest.mark.slow),
        pytest.param("v2_base", "bfloat16", marks=pytest.mark.slow),
    ],
)
def test_half_precision_stays_near_float32(family, dtype):
    config, params, arrays = reference_model(family)
    x, t, context, y = unet_inputs(arrays)
    got = jax.jit(UNet(config.unet, jnp.dtype(dtype)).apply)({"params": params["unet"]}, x, t, context, y)
    want = np.moveaxis(arrays["unet"], 1, -1)
    assert relative_error(got, want) < 3e-2
    cosine = np.vdot(got, want) / np.linalg.norm(got) / np.linalg.norm(want)
    assert cosine > 0.999


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [pytest.param("bfloat16", marks=pytest.mark.slow), "float16"])
def test_half_precision_survives_attention_logits_a_hundredfold(dtype):
    config, params, arrays = reference_model("v2_v")  # Stable Diffusion 2.1's logits overflow float16
    grown = jax.tree_util.tree_map_with_path(
        lambda path, a: a * 100 if any(getattr(key, "key", "") == "to_q" for key in path) else a, params["unet"]
    )
    x, t, context, y = unet_inputs(arrays)
    got = jax.jit(UNet(config.unet, jnp.dtype(dtype)).apply)({"params": grown}, x, t, context, y)
    # The numbers themselves are no measure: a softmax so sharp picks another key for the last bit of a logit. That
    # attention alone stays near the exact one is test_attention.py's claim
    assert np.isfinite(got).all()
    assert 0.1 < np.std(np.asarray(got, np.float32)) < 10


@functools.cache
def small_unet():
    x, context = np.ones([1, 4, 4, 4], np.float32), np.ones([1, 3, 16], np.float32)
    shapes = jax.eval_shape(UNet(SMALL).init, jax.random.key(0), x, np.ones([1]), context)["params"]
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: reference.fill(jax.tree_util.keystr(path), leaf.shape), shapes
    )


@pytest.mark.parametrize("size", [(8, 8), (7, 5), (1, 3)])
def test_unet_keeps_any_size(size):
    x, context = np.ones([2, *size, 4], np.float32), np.ones([2, 3, 16], np.float32)
    out = jax.eval_shape(UNet(SMALL).apply, {"params": small_unet()}, x, np.array([0.0, 999.0]), context)
    assert out.shape == x.shape


@pytest.mark.slow
def test_gradient_checkpointing_changes_no_gradient():
    config = UNetConfig(channels=(32,), heads=(2,), mid_heads=2, transformer_depth=(1,), self_attention=(True,),
                        context_dim=16, num_res_blocks=1)  # fmt: skip
    rng = np.random.default_rng(0)
    x, context = rng.standard_normal([1, 4, 4, 4], np.float32), rng.standard_normal([1, 3, 16], np.float32)
    shapes = jax.eval_shape(UNet(config).init, jax.random.key(0), x, np.ones([1]), context)["params"]
    params = jax.tree_util.tree_map_with_path(
        lambda path, a: reference.fill(jax.tree_util.keystr(path), a.shape), shapes
    )

    def loss(params, remat):
        return jnp.sum(UNet(config, remat=remat).apply({"params": params}, x, jnp.array([500.0]), context) ** 2)

    plain, *others = (jax.jit(jax.grad(loss), static_argnums=1)(params, remat) for remat in REMATS)
    norm = sum(np.square(a).sum() for a in jax.tree.leaves(plain)) ** 0.5
    for saved in others:
        for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(saved)):  # some are 0 but for rounding
            assert np.linalg.norm(a - b) < 1e-5 * norm  # float32 sums in another order

    def kept(remat):  # bytes between forward and backward pass
        residuals = jax.eval_shape(lambda params: jax.vjp(lambda params: loss(params, remat), params)[1], params)
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(residuals))

    assert kept("none") > kept("products") > kept("blocks")


def test_unet_refuses_what_it_cannot_use():
    x, context, t = jnp.ones([1, 8, 8, 4]), jnp.ones([1, 3, 16]), jnp.ones([1])
    variables = {"params": small_unet()}
    with pytest.raises(ValueError, match="takes 4 channels"):
        UNet(SMALL).apply(variables, x[..., :3], t, context)
    with pytest.raises(ValueError, match="takes no label"):
        UNet(SMALL).apply(variables, x, t, context, jnp.zeros([1], jnp.int32))
