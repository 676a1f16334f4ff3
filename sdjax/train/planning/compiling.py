"""Compiles a training step for devices that need not be able to run it.

These may be CPUs that XLA pretends to have (`--xla_force_host_platform_device_count`), or a described TPU topology.
Nothing is allocated. `sdjax.pipeline.collectives` reads from the program what the devices send each other.
"""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from sdjax.train import parallel
from sdjax.train.build import Setup


def compile_for(setup: Setup, mesh: Mesh) -> jax.stages.Compiled:
    """Returns the compiled training step of a run for the devices of a mesh."""
    how = setup.config.parallel
    state, frozen = setup.shapes
    where, frozen_where = (parallel.shardings(tree, mesh, how) for tree in (state, frozen))
    step = parallel.compile_step(setup.step(setup.empty_shape()), mesh, where, frozen_where, how)
    numbers = jax.tree.map(lambda n: jax.ShapeDtypeStruct(jnp.shape(n), jnp.result_type(n)), setup.numbers)
    return step.lower(state, frozen, setup.batch_shapes(), numbers).compile()  # type: ignore[attr-defined]
