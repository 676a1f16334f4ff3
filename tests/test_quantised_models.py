"""Quantised models in pipelines: what they hold, what merging and exporting do to them, and their pictures."""

import dataclasses

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

import sdjax
from sdjax.adapters import Difference
from sdjax.checks.notes import Note
from sdjax.nn.quantised.kinds import KINDS
from sdjax.nn.quantised.leaf import is_quantised, quantised_count
from sdjax.nn.quantised.rounding import quantised
from sdjax.pipeline.model import cast
from sdjax.pipeline.placement import make_mesh

import models
from checks import relative_error

KERNEL = "unet/mid_block/attentions_0/transformer_blocks_0/attn1/to_q/kernel"


def packed(pipe, kind="int8"):
    """Returns a pipeline with quantised kernels of the UNet's attention."""
    leaves = flatten_dict(pipe.params, sep="/")
    for path, leaf in leaves.items():
        if path.startswith("unet/") and "/to_" in path and path.endswith("kernel"):
            leaves[path] = quantised(KINDS[kind], np.asarray(leaf), pipe.dtype)
    return dataclasses.replace(pipe, params=unflatten_dict(leaves, sep="/"))


def test_a_pipeline_says_what_it_holds():
    plain, own = models.pipeline(), packed(models.pipeline())
    count = sum(np.size(leaf) for leaf in jax.tree.leaves(plain.params))
    assert f"{count:,} parameters, float32>" in repr(plain)
    assert f"{count:,} parameters, float32, int8>" in repr(own)
    device = jax.tree.leaves(own.on(make_mesh(jax.devices()[:1])))
    assert sum(leaf.nbytes for leaf in device) < sum(leaf.nbytes for leaf in jax.tree.leaves(plain.params))


def test_another_dtype_changes_what_kernels_become_and_not_the_codes():
    own = packed(models.pipeline())
    leaf, other = (flatten_dict(tree, sep="/")[KERNEL] for tree in (own.params, cast(own.params, "bfloat16")))
    assert (other.dtype, other.whole().dtype) == (np.dtype("bfloat16"), np.dtype("bfloat16"))
    assert other.codes[0] is leaf.codes[0]
    assert other.scale.dtype == np.float32


def test_merging_says_that_kernels_are_no_longer_quantised():
    own = packed(models.pipeline())
    change = {KERNEL: Difference(np.ones(flatten_dict(own.params, sep="/")[KERNEL].shape, np.float32))}
    with pytest.warns(Note, match=rf"1 of the model's {quantised_count(own.params)} quantised kernels are no longer"):
        merged = own.with_adapters((change, 0.5))
    leaf = flatten_dict(merged.params, sep="/")[KERNEL]
    assert not is_quantised(leaf)
    np.testing.assert_allclose(leaf, np.asarray(flatten_dict(own.params, sep="/")[KERNEL]) + 0.5, rtol=1e-6)


def test_an_export_refuses_quantised_weights(tmp_path):
    from sdjax.export.write import write

    with pytest.raises(ValueError, match=r'no quantised weights: load the model with quantise="no"'):
        write(packed(models.pipeline()), tmp_path / "out", height=64, width=64)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_latents_are_those_of_the_same_kernels_as_arrays():
    own = packed(models.pipeline())
    arrays = jax.tree.map(lambda leaf: np.asarray(leaf), own.params, is_leaf=is_quantised)
    options = {"num_steps": 3, "seed": [1, 2], "height": 64, "width": 64, "output": "latent"}
    got, want = (
        sdjax.text_to_image(pipe, "a cat", **options) for pipe in (own, dataclasses.replace(own, params=arrays))
    )
    assert relative_error(got, want) < 1e-4  # the same float32 numbers; the compiler fuses differently
