"""diffusers and PEFT load the adapters that we write: nothing unexpected, and the outputs of merged parameters."""

import warnings

import numpy as np
import pytest
from small_models import model, write

from sdjax import convert
from sdjax.adapters import LowRank, merge
from sdjax.convert.adapters.write import write_adapter
from sdjax.convert.names import tables

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("default")]
TOLERANCE = 1e-5  # relative: float32 sums in another order


@pytest.fixture(scope="module", params=["one rank", "mixed ranks"])
def case(request, tmp_path_factory):
    """Returns whether ranks and alphas are mixed, a folder with two pipelines, their config, and the adapter."""
    pytest.importorskip("peft")
    folder, mixed = tmp_path_factory.mktemp("loras"), request.param == "mixed ranks"
    config, tensors = model("v1")
    write(folder / "a.safetensors", tensors)
    convert.convert(folder / "a.safetensors", folder / "base", to="diffusers", config=config)
    rng, adapter = np.random.default_rng(0), {}
    for part in ("unet", "text"):
        for parameter in tables.part_parameters(part, getattr(config, part)):
            if parameter.path.endswith("/kernel"):
                rank, alpha = (int(rng.integers(2, 5)), int(rng.integers(1, 9))) if mixed else (4, 2)
                *window, d = parameter.shape
                down, up = 0.1 * rng.normal(size=(*window, rank)), 0.1 * rng.normal(size=(rank, d))
                adapter[parameter.path] = LowRank(down.astype("f"), up.astype("f"), alpha / rank)
    _, params = convert.load(folder / "a.safetensors", config=config)
    convert.save(config, merge(params, [(adapter, 1.0)]), folder / "merged", to="diffusers")
    return mixed, folder, config, adapter


def pipeline(folder):
    import diffusers

    none = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return diffusers.StableDiffusionPipeline.from_pretrained(folder, **none)


def outputs(unet, text_encoder):
    import torch

    draw = torch.Generator().manual_seed(0)
    x, context = (torch.randn(2, *shape, generator=draw) for shape in ((4, 8, 8), (7, unet.config.cross_attention_dim)))
    with torch.no_grad():
        return unet(x, torch.tensor([10, 500]), context).sample, text_encoder(torch.arange(77)[None] + 100)[0]


def check(got, folder):
    merged = pipeline(folder / "merged")
    for one, other in zip(got, outputs(merged.unet, merged.text_encoder)):
        assert (one - other).norm() < TOLERANCE * other.norm()


@pytest.mark.parametrize("names", ["kohya", "diffusers", "diffusers-old"])
def test_diffusers_loads_a_file_with_nothing_unexpected(case, names):
    mixed, folder, config, adapter = case
    if mixed and names == "kohya":
        pytest.skip("diffusers gives every layer of a kohya file the most frequent alpha")
    write_adapter(folder / f"{names}.safetensors", adapter, config, to=names)
    pipe = pipeline(folder / "base")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        pipe.load_lora_weights(str(folder), weight_name=f"{names}.safetensors")
    assert not [str(one.message) for one in told if "key" in str(one.message)]
    check(outputs(pipe.unet, pipe.text_encoder), folder)


def test_peft_loads_a_folder_with_nothing_missing(case):
    import peft

    _, folder, config, adapter = case
    write_adapter(folder / "peft", adapter, config, to="peft")
    pipe = pipeline(folder / "base")
    networks = []
    for part in ("unet", "text_encoder"):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            networks.append(peft.PeftModel.from_pretrained(getattr(pipe, part), folder / "peft" / part))
        assert not [str(one.message) for one in told if "keys" in str(one.message)]
    check(outputs(*networks), folder)
