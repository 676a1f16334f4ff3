"""What saves memory or work, together with LoRA, ControlNet and clips: the pictures are those without the saving."""

import dataclasses

import jax
import jax.export
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from test_clip_additions import control, lora, still

import sdjax
from sdjax import convert
from sdjax.convert.bundle import bundle_of_params
from sdjax.nn import UNet
from sdjax.nn.quantised.kinds import KINDS, WRITTEN, kind_for
from sdjax.nn.quantised.leaf import is_quantised, quantised_count
from sdjax.nn.quantised.rounding import quantised
from sdjax.pipeline.low_memory import LowMemoryPipeline
from sdjax.pipeline.streaming import stored
from sdjax.prompts.tokenizer import Tokenizer
from sdjax.tasks.adapters import AdapterUse

import models
from checks import relative_error

pytestmark = pytest.mark.slow  # each case compiles a network, or runs its layers one by one

SIZE = {"height": 64, "width": 64}
OPTIONS = {"num_steps": 2, "guidance_scale": 3.0, "output": "latent", "devices": jax.devices()[:1]}
# Settings with which a patch computes what the network computes without it
IDLE = ["deep_cache:interval=1", "t_gate:gate=1", "token_merging:ratio=0", "hypertile:tile_size=4096"]
BUSY = ["deep_cache:interval=2", "t_gate:gate=0.5", "token_merging", "token_downsampling", "hypertile:tile_size=32"]


def unet_lora():
    return [AdapterUse({path: one for path, one in lora().items() if path.startswith("unet/")})]


def made(pipe, feature, **options):
    """Returns the latents of a picture or clip with a feature: "lora", "control", "clip" or one of `BUSY`."""
    options = {**OPTIONS, **options}
    if feature == "lora":
        options["adapters"] = unet_lora()
    if feature == "control":
        options["controls"] = [control(1)]
    if feature in BUSY:
        options["patches"] = feature
    if feature == "clip":
        return np.asarray(sdjax.animate(pipe, "a cat", seeds=3, motion=still(), frames=2, **SIZE, **options))
    return np.asarray(sdjax.text_to_image(pipe, "a cat", seed=[1, 2], **SIZE, **options))


def packed(kind):
    """Returns the small model with all kernels of the UNet quantised, and the same numbers as arrays."""
    pipe = models.pipeline()
    leaves = flatten_dict(pipe.params, sep="/")
    for path, leaf in leaves.items():
        own = kind_for(KINDS[kind], leaf.shape[-2]) if path.startswith("unet/") and path.endswith("kernel") else None
        if own:
            leaves[path] = quantised(own, np.asarray(leaf), pipe.dtype)
    params = unflatten_dict(leaves, sep="/")
    arrays = jax.tree.map(np.asarray, params, is_leaf=is_quantised)
    return [dataclasses.replace(pipe, params=one) for one in (params, arrays)]


def low(params):
    bundle = bundle_of_params(models.TINY, params, Tokenizer())
    return LowMemoryPipeline(bundle.config, stored(bundle.leaves), bundle.tokenizer(), bundle=bundle)


FEATURES = ["lora", "control", "clip", *BUSY]


@pytest.mark.parametrize("feature", FEATURES)
def test_quantised_kernels_give_what_the_same_numbers_as_arrays_give(feature):
    got, want = (made(pipe, feature) for pipe in packed("q8_0"))
    assert relative_error(got, want) < 1e-4  # the same float32 numbers; the compiler fuses differently


@pytest.mark.parametrize("feature", FEATURES)
def test_low_memory_gives_what_the_model_in_memory_gives(feature):
    got, want = (made(pipe, feature) for pipe in (low(models.random_params(models.TINY)), models.pipeline()))
    assert relative_error(got, want) < 1e-3  # float32's rounding of sums, over two steps


@pytest.mark.parametrize("patch", IDLE)
@pytest.mark.parametrize("feature", ["lora", "control", "clip"])
def test_an_idle_patch_changes_nothing_of_a_feature(feature, patch):
    got, want = (made(models.pipeline(), feature, patches=one) for one in (patch, ()))
    assert relative_error(got, want) < 1e-4


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
def test_a_quantised_file_gives_the_same_with_low_memory(kind, tmp_path):
    models.pipeline().save(tmp_path / "model.safetensors")
    convert.convert(tmp_path / "model.safetensors", tmp_path / "model.gguf", config=models.TINY, quantise=kind)
    whole, small = (
        sdjax.load(tmp_path / "model.gguf", config=models.TINY, dtype="float32", low_memory=flag)
        for flag in (False, True)
    )
    assert quantised_count(whole.params["unet"]) > 10
    got, want = (made(pipe, None) for pipe in (small, whole))
    assert relative_error(got, want) < 1e-3  # float32's rounding of sums, over two steps
    exact = made(models.pipeline(), None)
    assert relative_error(want, exact) > 2e-3  # the type's own rounding shows


@pytest.mark.parametrize("kind", WRITTEN)
def test_the_unet_lowers_for_accelerators_with_packed_arguments(kind):
    (pipe, arrays), net = packed(kind), UNet(models.TINY.unet, "bfloat16")
    inputs = jax.ShapeDtypeStruct((1, 8, 8, 4), "float32"), jax.ShapeDtypeStruct((1,), "float32")
    inputs = *inputs, jax.ShapeDtypeStruct((1, 77, 32), "float32")
    run = jax.jit(lambda params, *inputs: net.apply({"params": params}, *inputs))
    made = jax.export.export(run, platforms=["cuda", "tpu"])(pipe.params["unet"], *inputs)
    sizes = [sum(leaf.nbytes for leaf in jax.tree.leaves(one.params["unet"])) for one in (pipe, arrays)]
    assert sum(one.size * one.dtype.itemsize for one in made.in_avals[: -len(inputs)]) == sizes[0] < 0.4 * sizes[1]
