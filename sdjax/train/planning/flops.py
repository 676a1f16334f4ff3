"""Floating-point operations of a function, counted in its jaxpr.

XLA's own count (`compiled.cost_analysis()`) takes the body of a scan once and kernels from outside for nothing, and
needs a compilation. Here the products are counted, two operations for each multiplication with its addition, which is
all but a few per cent of a network's work; element-wise operations, reductions and norms are left out.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

# Kernels that are no jaxpr inside: leaving them out would make the count wrong without a word
OPAQUE = re.compile(r"pallas_call|ffi_call|custom_partitioning|triton|tpu_custom_call|dot_product_attention|ragged_dot")
RECOMPUTED = "rematted_computation"  # the scope in which JAX's gradients put what jax.checkpoint computes again
NO_LAYER = re.compile(rf"|.*->.*|\w+\._\w+|checkpoint|{RECOMPUTED}")  # einsum's scopes and linen's private methods too
UNNAMED = "(no layer)"


@dataclasses.dataclass(frozen=True)
class Flops:
    """Floating-point operations of one call of a function.

    `recomputed` are those of `total` that only repeat a forward pass, for `jax.checkpoint`'s sake. `by_layer` gives
    the total's share of every layer by its path of module names, "UNet/down_blocks_0/resnets_0/conv1", forward and
    backward passes together.
    """

    total: int
    recomputed: int
    by_layer: dict[str, int]

    @property
    def model(self) -> int:
        """What the model needs, the total without what is computed again: the count that MFU is defined by.

        Source: Chowdhery et al. 2022, PaLM (arXiv 2204.02311), appendix B.
        """
        return self.total - self.recomputed

    def groups(self, depth: int = 2) -> dict[str, int]:
        """Returns the layers' counts added up by the first `depth` names of their paths, in order of first use."""
        out: dict[str, int] = {}
        for path, count in self.by_layer.items():
            group = "/".join(path.split("/")[:depth])
            out[group] = out.get(group, 0) + count
        return out

    def table(self, depth: int = 2) -> str:
        """Returns a line for each group of layers: its name, billions of operations, and share of the total."""
        groups = {**self.groups(depth), "total": self.total}
        width = max(map(len, groups))
        share = {name: 100 * count / max(self.total, 1) for name, count in groups.items()}
        return "\n".join(
            f"{name:{width}}  {count / 1e9:12,.1f} GFLOP  {share[name]:5.1f} %" for name, count in groups.items()
        )


def count(function: Callable, *args: Any, platform: str | None = None) -> Flops:
    """Returns the floating-point operations of `function(*args)`, of all devices together.

    Products (`dot_general`) and convolutions are counted exactly: of a convolution, the multiplications of an element
    of the input by one of the kernel, none with padding or with the zeros between dilated elements, so that a
    convolution and its two gradients count the same. A scan counts its length, `jax.shard_map` the mesh's size, a
    `cond` its largest branch, and `jax.lax.platform_dependent` the branch of `platform` ("cpu", "cuda", "tpu") or,
    without one, the default branch.

    Args:
        args: arrays, or jax.ShapeDtypeStruct in their place: nothing is computed or allocated.

    Raises ValueError where a count cannot be known: products in a while loop, or a kernel from outside (Pallas, cuDNN).
    """
    total, recomputed, by_layer = 0, 0, {}
    for stack, flops in _products(jax.make_jaxpr(function)(*args).jaxpr, platform):
        total += flops
        recomputed += flops if RECOMPUTED in stack else 0
        path = "/".join(name for part in stack for name in _layers(part)) or UNNAMED
        by_layer[path] = by_layer.get(path, 0) + flops
    return Flops(total, recomputed, by_layer)


def _products(jaxpr: Any, platform: str | None) -> Iterator[tuple[tuple[str, ...], int]]:
    """Yields every counted equation's name stack, outermost first, and its operations."""
    for eqn in jaxpr.eqns:
        own = str(eqn.source_info.name_stack)
        # A remat in a backward pass stands in its forward pass's scope within its own, a/b/jvp(a/b): named once
        marks = (RECOMPUTED,) if RECOMPUTED in own else ()
        if eqn.primitive.name in COUNTED:
            yield (*marks, own), COUNTED[eqn.primitive.name](eqn)
        elif OPAQUE.search(eqn.primitive.name):
            raise ValueError(
                f"the operations of {eqn.primitive.name} at {own or 'the top'} are not known: it is a kernel from "
                "outside; count a function that computes the same by jax.numpy, or for another platform"
            )
        for times, inner in _inner(eqn, platform):
            for stack, flops in _products(inner, platform):
                yield (*marks, own, *stack), times * flops


def _inner(eqn: Any, platform: str | None) -> list[tuple[int, Any]]:
    """Returns the jaxprs that an equation runs, each with how often."""
    name, params = eqn.primitive.name, eqn.params
    if name == "scan":
        return [(params["length"], params["jaxpr"].jaxpr)]
    if name == "cond":
        return [(1, branch_of(eqn, platform) or max(_jaxprs(params["branches"]), key=lambda j: _sum(j, platform)))]
    inner = _jaxprs(params.values())
    if name == "while" and any(_sum(jaxpr, platform) for jaxpr in inner):
        raise ValueError(
            "how often a while loop runs is not known before it runs, and this one holds products; use jax.lax.scan, "
            "or jax.lax.fori_loop with a fixed number of rounds"
        )
    return [(params["mesh"].size if name == "shard_map" else 1, jaxpr) for jaxpr in inner]


def branch_of(eqn: Any, platform: str | None) -> Any | None:
    """Returns the jaxpr that a `cond` equation of jax.lax.platform_dependent runs; None for any other `cond`."""
    platforms = eqn.params.get("branches_platforms")
    if platforms is None:
        return None
    ours = [i for i, names in enumerate(platforms) if names is not None and platform in names]
    default = [i for i, names in enumerate(platforms) if names is None]
    if not ours + default:
        raise ValueError(f"a branch of jax.lax.platform_dependent for {platform!r} was looked for among {platforms}")
    return eqn.params["branches"][(ours + default)[0]].jaxpr


def _jaxprs(values: Any) -> list[Any]:
    """Returns the jaxprs among an equation's parameters, closed or not, alone or in tuples."""
    flat = [item for value in values for item in (value if isinstance(value, tuple | list) else (value,))]
    flat = [getattr(value, "jaxpr", value) for value in flat]
    return [value for value in flat if hasattr(value, "eqns")]


def _sum(jaxpr: Any, platform: str | None) -> int:
    return sum(flops for _, flops in _products(jaxpr, platform))


def _layers(part: str) -> list[str]:
    """Returns the module names in an equation's own name stack, such as "transpose(jvp(UNet))/conv_in"."""
    names = re.sub(r"\w+\(|\)", "", part).split("/")
    names = [name for name in names if not NO_LAYER.fullmatch(name)]
    half = len(names) // 2
    return names[:half] if names and names[:half] == names[half:] else names


def _dot(eqn: Any) -> int:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    shape = eqn.invars[0].aval.shape
    return 2 * eqn.outvars[0].aval.size * math.prod(shape[i] for i in contracted)


def _convolution(eqn: Any) -> int:
    p = eqn.params
    lhs, rhs, out = (variable.aval.shape for variable in (*eqn.invars, *eqn.outvars))
    numbers = p["dimension_numbers"]  # each: batch or output feature, feature or input feature, space
    pairs = [
        _pairs(lhs[i], rhs[k], out[o], *numbers_of_axis)
        for i, k, o, *numbers_of_axis in zip(
            numbers.lhs_spec[2:], numbers.rhs_spec[2:], numbers.out_spec[2:], p["window_strides"], p["padding"],
            p["lhs_dilation"], p["rhs_dilation"],
        )
    ]  # fmt: skip
    # A kernel holds the input features of one group only, which makes groups of either kind right
    return 2 * out[numbers.out_spec[0]] * out[numbers.out_spec[1]] * rhs[numbers.rhs_spec[1]] * math.prod(pairs)


@functools.lru_cache(maxsize=1024)
def _pairs(
    size: int, kernel: int, out: int, stride: int, padding: tuple[int, int], lhs_dilation: int, rhs_dilation: int
) -> int:
    """Returns how many pairs of an input and a kernel element a convolution multiplies along one axis."""
    at = np.arange(out)[:, None] * stride + np.arange(kernel) * rhs_dilation - padding[0]
    return int(((at >= 0) & (at <= (size - 1) * lhs_dilation) & (at % lhs_dilation == 0)).sum())


COUNTED = {"dot_general": _dot, "conv_general_dilated": _convolution}
