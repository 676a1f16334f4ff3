"""CLIP's image towers: sizes of the releases, the reference's outputs, transformers' on other shapes.

golden/image_towers.npz holds small towers' embeddings by OpenAI's and OpenCLIP's code.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity_towers import vision, vision_config
from safetensors.numpy import save_file

from sdjax import configs, convert
from sdjax.config import ConfigError, VisionConfig
from sdjax.convert.describe.vision_config import transformers_file
from sdjax.convert.names.tables import part_entries
from sdjax.nn import VisionEncoder, param_counts

import reference
from checks import relative_error

SMALL = VisionConfig(image_size=42, patch_size=7, width=48, layers=2, heads=3, projection=32, activation="quick_gelu")


def golden_case(name):
    """Returns (specification, tensors, pixels, embedding) of a case."""
    arrays = reference.golden("image_towers")
    spec = json.loads(str(arrays["spec"]))[name]
    return spec, reference.fill_spec(spec), arrays[f"{name}/pixels"], arrays[f"{name}/embedding"]


@pytest.mark.parametrize(
    ("name", "count"),
    [("sd2_unclip_h", 632_076_800), ("sd2_unclip_l", 303_966_208)],
)
def test_parameter_counts_are_the_releases(name, count):
    assert param_counts(configs.get(name))["vision"] == count


@pytest.mark.parametrize("name", ["vit_l", "vit_h"])
def test_towers_equal_the_reference(name):
    spec, tensors, pixels, want = golden_case(name)
    assert relative_error(vision(spec, tensors, pixels), want) < 2e-5  # float32 rounding of two implementations


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_near_float32(dtype):
    spec, tensors, pixels, want = golden_case("vit_h")
    config, params = convert.load_vision(tensors, vision_config(spec))
    got = jax.jit(VisionEncoder(config, jnp.dtype(dtype)).apply)({"params": params}, jnp.moveaxis(pixels, 1, -1))
    assert got.dtype == jnp.float32
    assert relative_error(got, want) < 3e-2


def test_pixels_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"takes pixels \[b, 42, 42, 3\]; got \(1, 42, 56, 3\)"):
        jax.eval_shape(VisionEncoder(SMALL).init, jax.random.key(0), jnp.zeros((1, 42, 56, 3)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": 225}, "multiple of patch_size = 14, got 225"),
        ({"heads": 7}, "heads = 7 does not divide width = 1024"),
        ({"layers": 0}, "needs a width, layers, a projection"),
        ({"activation": "relu"}, "activation is one of quick_gelu, gelu"),
    ],
)
def test_a_description_that_contradicts_itself_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        VisionConfig(**fields)


@pytest.mark.torch
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_towers_equal_transformers(tmp_path, activation):
    import dataclasses

    import torch
    import transformers

    config = dataclasses.replace(SMALL, activation=activation)
    entries = part_entries("vision", config, "diffusers")
    names = {entry.name.removeprefix("image_encoder/"): entry.shape for entry in entries}
    (tmp_path / "config.json").write_text(json.dumps(transformers_file(config)))
    save_file(reference.fill_all(names, 3), tmp_path / "model.safetensors")
    peer, info = transformers.CLIPVisionModelWithProjection.from_pretrained(tmp_path, output_loading_info=True)
    assert not [names for names in info.values() if names]
    pixels = np.random.default_rng(0).normal(size=(2, 42, 42, 3)).astype(np.float32)
    with torch.no_grad():
        want = peer(torch.from_numpy(np.moveaxis(pixels, -1, 1).copy())).image_embeds.numpy()
    again, params = convert.load_vision(tmp_path)
    assert again == config
    assert relative_error(VisionEncoder(config).apply({"params": params}, pixels), want) < 2e-5
