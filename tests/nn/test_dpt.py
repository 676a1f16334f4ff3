"""MiDaS DPT-Hybrid: transformers' outputs on a small network, the reference's on the released one, its layouts.

golden/dpt.npz holds what transformers 5.23 makes of the small network below, and what Stability's code makes of the
whole one with these weights.
"""

import gzip
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from sdjax import convert
from sdjax.config import ConfigError, DepthConfig, ModelConfig, TextConfig, UNetConfig, VAEConfig
from sdjax.convert import CheckpointError
from sdjax.convert.describe import dpt_config
from sdjax.convert.names import depth
from sdjax.nn import DepthEstimator
from sdjax.nn.depth.bit import same_padding

import reference
from checks import relative_error

SMALL = DepthConfig(
    image_size=64, stem_width=8, stage_widths=(32, 64, 96), stage_depths=(2, 1, 1), norm_groups=4, width=32, layers=3,
    heads=4, taps=(0, 2), neck_widths=(24, 40), features=16, norm_epsilon=1e-6,
)  # fmt: skip
MODEL = ModelConfig(
    name="small",
    unet=UNetConfig(in_channels=5, channels=(32,), heads=(2,), mid_heads=2, transformer_depth=(1,),
                    self_attention=(True,), num_res_blocks=1, context_dim=32),
    vae=VAEConfig(channels=(32, 32), num_res_blocks=1),
    text=TextConfig(width=32, layers=1, heads=2),
    depth=SMALL,
)  # fmt: skip


def weight(name, shape, seed=0):
    """Returns a tensor in which every epsilon, the positions and the transformer show in the output.

    Residual branches and the transformer's input are small, so that its norms see small variances; every second output
    channel of the ResNet's kernels too, whose scale cancels but for epsilon; positions and the readout are large.
    """
    x = reference.fill(name, shape, seed)
    if name.endswith(("pos_embed", "cls_token", "position_embeddings")):
        x = x * np.float32(0.05 * np.sqrt(np.prod(shape[1:])))
    elif "backbone." in name and len(shape) == 4:
        x[1::2] *= np.float32(0.2)
    elif any(part in name for part in (".patch_embed.proj.", ".attn.proj.", ".mlp.fc2.", "embeddings.projection.",
                                       ".output.dense.")):  # fmt: skip
        x = x * np.float32(0.05)
    elif "backbone." in name and ".norm3." in name:
        x = x * np.float32(0.25)
    elif ".project.0.weight" in name or ("readout_projects" in name and len(shape) == 2):
        x = x * np.float32(8)
    return x.astype(np.float32)


def transformers_tensors():
    """Returns the small network's tensors under transformers' names."""
    shapes = convert.tensor_shapes(MODEL, "diffusers")
    names = {name.partition("/")[2]: shape for name, shape in shapes.items() if name.startswith("depth_estimator/")}
    return {name: weight(name, shape) for name, shape in names.items()}


def small_folder(folder):
    """Writes the small network as transformers would."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(dpt_config.transformers_file(SMALL)))
    save_file(transformers_tensors(), folder / "model.safetensors")
    return folder


def small_image(height=64, width=64):
    return np.random.default_rng(0).uniform(-1, 1, (2, height, width, 3)).astype(np.float32)


def estimate(config, params, image, dtype=jnp.float32):
    return jax.jit(DepthEstimator(config, dtype).apply)({"params": params}, image)[..., 0]


def test_a_small_network_equals_transformers(tmp_path):
    config, params = convert.load_depth(small_folder(tmp_path / "dpt"))
    assert config == SMALL
    want = reference.golden("dpt")["small"]
    assert want.std() > 0.01
    assert relative_error(estimate(config, params, small_image()), want) < 2e-5  # float32 rounding


@pytest.mark.torch
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("size", [(64, 64), (96, 160)])
def test_a_small_network_equals_transformers_at_any_size(tmp_path, size):
    import torch
    import transformers

    folder = small_folder(tmp_path / "dpt")
    peer, info = transformers.DPTForDepthEstimation.from_pretrained(folder, output_loading_info=True)
    assert set(info["missing_keys"]) == set(depth.UNUSED)
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    image = small_image(*size)
    config, params = convert.load_depth(folder)
    nchw = torch.from_numpy(np.moveaxis(image, -1, 1).copy())
    embeddings = peer.dpt.embeddings
    forward = embeddings.forward  # the model itself never asks for other sizes than the trained one
    embeddings.forward = lambda pixels, **options: forward(pixels, interpolate_pos_encoding=True)
    with torch.no_grad():
        maps = peer(nchw).predicted_depth if size == (64, 64) else None
    if maps is not None:
        assert relative_error(estimate(config, params, image), maps.numpy()) < 2e-5
        np.testing.assert_allclose(maps.numpy(), reference.golden("dpt")["small"], rtol=1e-4, atol=1e-5)
    else:  # its reassembling takes squares only; what comes before takes any size
        with torch.no_grad():
            tokens = embeddings(nchw).last_hidden_states
        from sdjax.nn.depth.dpt import Embeddings

        _, ours = Embeddings(config).apply({"params": params["dpt"]["embeddings"]}, image)
        assert relative_error(ours, tokens.numpy()) < 2e-5


@pytest.mark.slow
def test_the_released_network_equals_the_reference():
    manifest = json.loads(gzip.decompress((reference.GOLDEN / "depth_manifest.json.gz").read_bytes()))
    arrays = reference.golden("dpt")
    tensors = {name: weight(name, tuple(shape), int(arrays["seed"])) for name, (shape, _) in manifest.items()}
    config, params = convert.load_depth(tensors)
    image = np.moveaxis(arrays["image"], 1, -1)
    assert relative_error(estimate(config, params, image), arrays["depth"][:, 0]) < 2e-5  # float32 rounding


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
def test_half_precision_stays_near_float32(tmp_path, dtype):
    config, params = convert.load_depth(small_folder(tmp_path / "dpt"))
    got = estimate(config, params, small_image(), jnp.dtype(dtype))
    assert got.dtype == jnp.float32
    assert relative_error(got, reference.golden("dpt")["small"]) < 0.03


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (160, 32)])
def test_depth_has_the_pictures_size(size):
    image = jnp.zeros((1, *size, 3))
    shape = jax.eval_shape(lambda: DepthEstimator(SMALL).init_with_output(jax.random.key(0), image)[0]).shape
    assert shape == (1, *size, 1)


def test_sides_that_are_no_multiples_of_32_are_refused():
    with pytest.raises(ValueError, match="multiples of 32; got 48 x 64"):
        jax.eval_shape(DepthEstimator(SMALL).init, jax.random.key(0), jnp.zeros((1, 48, 64, 3)))


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"),
    [(384, 7, 2, (2, 3)), (192, 3, 2, (0, 1)), (33, 3, 2, (1, 1)), (12, 3, 1, (1, 1)), (8, 1, 2, (0, 0))],
)
def test_padding_is_tensorflows(size, kernel, stride, padding):
    assert same_padding((size, size), kernel, stride) == (padding, padding)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": 100}, "multiple of 32"),
        ({"taps": (8, 12)}, "taps rise and are below layers = 12"),
        ({"stage_depths": (3, 4)}, "stage_depths has 3 entries"),
        ({"heads": 7}, "does not divide width"),
        ({"stage_widths": (256, 500, 1024)}, "divide into norm_groups = 32; got 500"),
    ],
)
def test_a_description_that_contradicts_itself_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        DepthConfig(**fields)


def test_descriptions_go_to_json_and_back():
    assert ModelConfig.from_dict(json.loads(json.dumps(MODEL.to_dict()))) == MODEL
    assert dpt_config.depth_from_transformers(dpt_config.transformers_file(SMALL)) == SMALL
    # Intel's dpt-hybrid-midas, as far as its fields matter; the backbone's were not written then
    released = {
        "model_type": "dpt", "is_hybrid": True, "readout_type": "project", "layer_norm_eps": 1e-12,
        "neck_hidden_sizes": [256, 512, 768, 768], "reassemble_factors": [1, 1, 1, 0.5], "backbone_config": None,
    }  # fmt: skip
    assert dpt_config.depth_from_transformers(released) == DepthConfig(norm_epsilon=1e-12)
    assert dpt_config.depth_from_transformers({**released, "is_hybrid": False}) is None


def test_another_kind_of_network_is_refused(tmp_path):
    folder = small_folder(tmp_path / "dpt")
    (folder / "config.json").write_text('{"model_type": "dpt", "is_hybrid": false}')
    with pytest.raises(CheckpointError, match="not DPT-Hybrid"):
        convert.load_depth(folder)
    with pytest.raises(CheckpointError, match="holds none in MiDaS's"):
        convert.load_depth({"encoder.weight": np.ones(3, np.float32)})
