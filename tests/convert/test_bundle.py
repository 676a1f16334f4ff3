"""A bundle whose parameters were replaced in memory is written correctly."""

import copy
import pickle

import jax
import numpy as np
import pytest
from small_models import model, write

from sdjax import convert
from sdjax.convert.write.writing import write_bundle


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """Returns a file of the small v1 in float16, with a licence, and its description."""
    config, tensors = model("v1")
    halves = {name: array.astype(np.float16) if array.dtype == np.float32 else array for name, array in tensors.items()}
    path = write(tmp_path_factory.mktemp("half") / "model.safetensors", halves, {"modelspec.title": "mine"})
    (path.parent / "LICENSE").write_text("free")
    return path, config


def test_parameters_that_were_only_cast_are_written_as_they_were_stored(half, tmp_path):
    path, config = half
    bundle = convert.load_model(path, config, dtype="float32")
    again = bundle.with_params(jax.tree.map(np.array, bundle.params))
    write_bundle(again, tmp_path / "out.safetensors", "ldm")
    assert convert.manifest(convert.read(tmp_path / "out.safetensors")) == convert.manifest(convert.read(path))


def test_a_changed_parameter_is_written_whole_and_the_rest_as_it_was(half, tmp_path):
    path, config = half
    bundle = convert.load_model(path, config, dtype="float32")
    params = {**bundle.params, "vae": jax.tree.map(np.array, bundle.params["vae"])}
    params["vae"]["quant_conv"]["bias"][:] = np.float32(0.1)  # which float16 rounds
    write_bundle(bundle.with_params(params), tmp_path / "out.safetensors", "ldm")
    before, after = convert.read(path), convert.read(tmp_path / "out.safetensors")
    assert np.array_equal(after["first_stage_model.quant_conv.bias"], np.full(8, 0.1, np.float32))
    same = [name for name in before if np.array_equal(before[name], after[name])]
    assert {*before} - {*same} == {"first_stage_model.quant_conv.bias"}
    assert (tmp_path / "LICENSE").exists() or "free" in after.metadata["sdjax.licence"]
    assert after.metadata["modelspec.title"] == "mine"


def test_replaced_parameters_are_held_against_the_description(half):
    path, config = half
    bundle = convert.load_model(path, config)
    params = {**bundle.params, "vae": {}}
    with pytest.raises(ValueError, match="not the description's: vae/decoder/.* got nothing"):
        bundle.with_params(params).cast("float32")


def test_notices_and_description_are_replaced_together_with_the_parameters(half):
    path, config = half
    bundle = convert.load_model(path, config)
    other = bundle.with_params(bundle.params, notices=["widened"])
    assert (other.report.notices, other.config, other.licences) == (("widened",), bundle.config, {"LICENSE": "free"})
    assert other.report.layout == bundle.report.layout == "ldm"


def test_copies_keep_parameters_in_memory_and_leave_files_alone(half):
    path, config = half
    bundle = convert.load_model(path, config)
    assert copy.deepcopy(bundle) is bundle
    stored = pickle.loads(pickle.dumps(bundle))
    assert (stored.config, dict(stored.leaves), stored.licences) == (config, {}, {"LICENSE": "free"})
    held = pickle.loads(pickle.dumps(bundle.with_params({"unet": {"a": np.ones(2)}})))
    assert np.array_equal(held.params["unet"]["a"], np.ones(2))
