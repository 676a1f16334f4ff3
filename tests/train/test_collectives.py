"""A step's collectives on eight devices: the gradient's sum, with FSDP also parameters, and nothing else."""

import dataclasses
import math
import re
from typing import NamedTuple

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from models_to_train import TINY

from sdjax.configs import finetune
from sdjax.description import build
from sdjax.pipeline.collectives import Collective, collectives, totals
from sdjax.train import parallel
from sdjax.train.build import Setup
from sdjax.train.config import TrainConfig
from sdjax.train.parallel import step_options, training_mesh
from sdjax.train.planning.compiling import compile_for


def sizes(found: list[Collective]) -> dict[str, int]:
    """Returns the bytes of the results of each kind."""
    return {kind: total.size for kind, total in totals(found).items()}


def setup(**sides):
    config = finetune.get_config().to_dict()
    config["model"] |= {"path": None, "scratch": TINY.to_dict()}
    config["data"] |= {"parts": (), "cached": ("latents.tar",)}
    config |= {"batch_size": 8, "parallel": {**config["parallel"], **sides}, "ema": {"decay": None}}
    return Setup(build(TrainConfig, config), TINY)


def test_a_sum_over_devices_is_found():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, P("data"))
    x = jax.ShapeDtypeStruct((64, 32), np.float32, sharding=rows)
    found = sizes(collectives(jax.jit(lambda x: x.sum(0)).lower(x).compile().as_text(), 8))
    assert found == {"all-reduce": 32 * 4}


@pytest.mark.slow
def test_data_parallel_steps_exchange_gradients_alone():
    run = setup()
    found = collectives(compile_for(run, training_mesh(run.config.parallel)).as_text(), 8)
    numbers = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(run.shapes[0].params))
    scalars = [one for one in found if one.size <= 4]
    assert set(totals(found)) == {"all-reduce"}
    assert sum(one.total for one in found) - sum(one.total for one in scalars) == pytest.approx(4 * numbers, rel=0.01)
    assert len(scalars) < 10


@pytest.mark.slow
def test_fsdp_gathers_parameters_and_scatters_gradients():
    run = setup(data=1, fsdp=8, whole=64)
    found = sizes(collectives(compile_for(run, training_mesh(run.config.parallel)).as_text(), 8))
    size = 4 * sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(run.shapes[0].params))
    assert set(found) <= {"all-reduce", "all-gather", "reduce-scatter", "all-to-all"}
    assert 0.9 * size <= found["all-gather"] <= 2 * size  # for the forward pass, and again for the backward pass
    assert found["all-reduce"] + found.get("reduce-scatter", 0) <= 1.1 * size  # XLA on CPUs sums whole gradients
    assert found.get("all-to-all", 0) < 0.05 * size


@pytest.mark.slow
def test_parts_of_a_batch_exchange_gradients_in_each_part():
    run = setup()
    twice = dataclasses.replace(run, config=dataclasses.replace(run.config, batch_size=16, accumulate=2))
    found = [collectives(compile_for(one, training_mesh(one.config.parallel)).as_text(), 8) for one in (run, twice)]
    once, both = (sum(one.total for one in some) for some in found)
    assert both == pytest.approx(2 * once, rel=0.02)


@pytest.mark.slow
def test_a_step_on_cpus_does_not_copy_what_it_replaces():
    if not step_options(jax.devices()):
        pytest.skip("this XLA has no such option")
    run = dataclasses.replace(setup(), config=dataclasses.replace(setup().config, batch_size=1))
    program = compile_for(run, training_mesh(run.config.parallel, jax.devices()[:1])).as_text()
    assert "parameter(" in program
    assert len(re.findall(r" copy\(%?state", program)) <= 3  # counts of steps; before it was one for every array


def test_options_for_overlap_are_those_of_the_platform_and_can_be_turned_off(monkeypatch):
    monkeypatch.setattr(parallel, "_has_option", lambda device, name: True)
    gpus, cpus = [Described("gpu")] * 8, [Described("cpu")] * 8
    assert step_options(gpus) == {"xla_gpu_enable_latency_hiding_scheduler": True}
    assert step_options(gpus, overlap=False) == step_options(gpus[:1]) == {}
    assert step_options(cpus) == step_options(cpus, overlap=False)


class Described(NamedTuple):
    """A device that is not there."""

    platform: str
    process_index: int = 0


def test_an_option_that_xla_does_not_have_is_left_out(monkeypatch):
    monkeypatch.setitem(parallel.OPTIONS, "cpu", ("xla_no_such_option", "xla_cpu_enable_fast_math"))
    assert step_options(jax.devices()) == {"xla_cpu_enable_fast_math": True}


def test_xla_knows_the_option_for_gpus_by_its_name():
    # All backends of jaxlib share the names of DebugOptions, whatever device compiles
    assert parallel._has_option(jax.devices()[0], *parallel.OVERLAP["gpu"])
