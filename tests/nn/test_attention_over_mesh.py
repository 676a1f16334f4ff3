"""The TPU's attention kernel in a function that XLA divides over devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from sdjax.nn.layers import attention

AXES = ("data", "fsdp", "tensor")


def mesh_of(*sides):
    return jax.make_mesh(sides, AXES, axis_types=(AxisType.Auto,) * 3)


def attend(mesh):
    def run(q):
        with attention.over_mesh(mesh, ("data", "fsdp"), "tensor"):
            return attention.attend(q, q, q)

    return run


@pytest.mark.parametrize("b", [8, 3])
def test_a_divided_function_is_lowered_for_several_tpus(b):
    mesh = mesh_of(2, 2, 2)
    q = jax.ShapeDtypeStruct((b, 512, 4, 64), jnp.bfloat16)
    where = NamedSharding(mesh, P(("data", "fsdp")) if b % 4 == 0 else P())

    def lowered(function):
        return jax.jit(function, in_shardings=where).trace(q).lower(lowering_platforms=("tpu",)).as_text()

    with pytest.raises(NotImplementedError, match="cannot be automatically partitioned"):
        lowered(lambda q: attention.attend(q, q, q))
    assert "tpu_custom_call" in lowered(attend(mesh))


@pytest.mark.slow
def test_a_divided_kernel_gives_the_same_results_and_gradients(monkeypatch):
    interpreted = attention.splash
    monkeypatch.setattr(attention, "splash", lambda *args, **options: interpreted(*args, **options, interpret=True))
    mesh = mesh_of(2, 1, 2)
    q = jax.random.normal(jax.random.key(0), (4, 512, 2, 64), jnp.bfloat16)
    kernel = lambda q, k, v: attention.splash(q, k, v)  # noqa: E731
    division = attention.Division(mesh, ("data", "fsdp"), "tensor")

    def loss(function):
        return jax.jit(jax.value_and_grad(lambda q: (function(q, q, q).astype(jnp.float32) ** 2).sum()))

    found = loss(attention._divided(kernel, division, q))(jax.device_put(q, NamedSharding(mesh, P("data"))))
    for one, other in zip(found, loss(kernel)(q)):
        np.testing.assert_allclose(np.float32(one), np.float32(other), rtol=2e-2, atol=1e-2)


def test_off_tpus_nothing_changes():
    q = jax.random.normal(jax.random.key(0), (4, 160, 2, 8))
    np.testing.assert_array_equal(jax.jit(attend(mesh_of(2, 2, 2)))(q), jax.jit(lambda q: attention.attend(q, q, q))(q))
