"""Converts a training state to the tree that Orbax stores and back, and compares shapes and names."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def without_key_types(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf, tree)


def with_key_type(like: Any, leaf: Any) -> Any:
    if not _is_key(like):
        return leaf
    return jax.random.wrap_key_data(leaf, impl=jax.random.key_impl(jnp.empty((), like.dtype)))


def stored_shape(leaf: Any) -> Any:
    """Returns the shape, type and sharding of what is stored for a leaf of a state."""
    if isinstance(leaf, np.ndarray):
        return leaf
    stored = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(stored.shape, stored.dtype, sharding=sharding)


def fields(state: PyTree) -> tuple[dict[str, PyTree], jax.tree_util.PyTreeDef]:
    """Returns the top-level parts by name, and a function that puts them together again."""
    parts, structure = jax.tree_util.tree_flatten_with_path(state, is_leaf=lambda node: node is not state)
    return {jax.tree_util.keystr(path, simple=True): part for path, part in parts}, structure


def check_same(stored: PyTree, wanted: PyTree, name: str) -> None:
    """Raises ValueError, saying where they differ, unless two trees hold arrays of the same names, shapes and types."""
    there, here = (
        {
            path: f"{np.dtype(leaf.dtype)}{list(leaf.shape)}"
            for path, leaf in ocp.tree.to_flat_dict(tree, sep="/").items()
        }
        for tree in (stored, wanted)
    )
    differing = [path for path in sorted({*there, *here}) if there.get(path) != here.get(path)]
    if differing:
        shown = ", ".join(
            f"{path} ({there.get(path, 'none')} there, {here.get(path, 'none')} here)" for path in differing[:4]
        )
        more = f" and {len(differing) - 4} more" if len(differing) > 4 else ""
        raise ValueError(
            f"{name} is of another model or optimiser: {shown}{more} differ; "
            "go back to the settings that it was trained with, or train in another folder"
        )
