"""Spreading a batch over devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.pipeline import placement


def scaled(static, weights, batch):
    return {"out": batch["x"] * weights + static}


@pytest.mark.parametrize("parallel", placement.PARALLEL)
@pytest.mark.parametrize("count", [1, 2, 8])
def test_every_device_computes_its_part_of_the_batch(parallel, count):
    mesh = placement.make_mesh(jax.devices()[:count])
    run = placement.compiled(scaled, 1.0, mesh, (False, True), parallel)
    x = np.arange(48, dtype=np.float32).reshape(16, 3)
    out = run(placement.replicate(jnp.float32(2), mesh), placement.split({"x": x}, mesh))["out"]
    np.testing.assert_array_equal(out, 2 * x + 1)
    assert len(out.sharding.device_set) == count


def test_padded_is_the_next_multiple():
    assert [placement.padded(n, 4) for n in (1, 4, 5)] == [4, 4, 8]


def test_filling_repeats_the_last_item_up_to_the_next_multiple():
    assert [placement.fill(list("abcde"[:n]), 4) for n in (1, 4, 5)] == [list("aaaa"), list("abcd"), list("abcdeeee")]


def test_an_unknown_way_of_spreading_is_refused():
    with pytest.raises(ValueError, match="jit, pmap; got 'threads'"):
        placement.compiled(scaled, 1.0, placement.make_mesh(), (False, True), "threads")
