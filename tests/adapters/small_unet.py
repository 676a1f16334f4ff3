"""A network of the UNet's kind that is small enough for every test: one level, its parameters and inputs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.adapters import LowRank, patched
from sdjax.config import UNetConfig
from sdjax.nn import UNet

import models

CONFIG = UNetConfig(channels=(32,), heads=(2,), mid_heads=2, transformer_depth=(1,), self_attention=(True,),
                    context_dim=16, num_res_blocks=1)  # fmt: skip
PROJECTIONS = ("to_q", "to_k", "to_v", "to_out_0")


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@functools.cache
def inputs(batch: int = 3) -> tuple[jax.Array, ...]:
    """Returns x, t and context of a batch of different images."""
    return normal(0, batch, 4, 4, 4), jnp.linspace(10.0, 900.0, batch), normal(1, batch, 3, 16)


@functools.cache
def params() -> dict:
    shapes = jax.eval_shape(UNet(CONFIG).init, jax.random.key(0), *inputs())["params"]
    return jax.tree.map(jnp.asarray, models.fill_tree(shapes))


@functools.partial(jax.jit, static_argnames=("patches", "remat"))
def run(
    params: dict, inputs: tuple, patches: tuple = (), own: tuple = (), remat: str = "none", shared: tuple | None = None,
    **options,
) -> jax.Array:  # fmt: skip
    """Returns the network's prediction with these patches."""
    with patched(patches, shared, own):
        return UNet(CONFIG, remat=remat).apply({"params": params}, *inputs, **options)


def attention_paths() -> list[str]:
    """Returns the paths of all projections of the network's attention layers."""
    leaves = jax.tree_util.tree_leaves_with_path(params())
    paths = [jax.tree_util.keystr(path, simple=True, separator="/").rpartition("/") for path, _ in leaves]
    return sorted(path for path, _, leaf in paths if leaf == "kernel" and path.endswith(PROJECTIONS))


def adapter(seed: int, rank: int) -> dict[str, LowRank]:
    """Returns low-rank changes of all projections' kernels, about as large as the kernels."""
    out = {}
    for i, path in enumerate(attention_paths()):
        tree = params()
        for name in path.split("/"):
            tree = tree[name]
        c, d = tree["kernel"].shape
        down, up = normal(100 * seed + i, c, rank) / c**0.5, normal(100 * seed + i + 50, rank, d) / rank**0.5
        out[f"{path}/kernel"] = LowRank(down, up, 0.5 + 0.1 * seed)
    return out
