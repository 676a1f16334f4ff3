"""From the pieces of a layer's change to the change itself: one function for each kind of adapter, in one table."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeAlias

import numpy as np

from sdjax.adapters.delta import Delta, Difference, LowRank
from sdjax.adapters.dora import Convention, WeightDecomposed
from sdjax.adapters.families import BOFT, IA3, OFT, GLoRA, InputOFT, LoHa, LoKr, Rotation, block_side
from sdjax.convert.adapters.spelling import Layer
from sdjax.convert.names import axes
from sdjax.convert.names.tables import Parameter


class Misfit(ValueError):
    """The pieces of a layer's change do not fit together, or do not fit the layer."""


@dataclasses.dataclass(frozen=True)
class Scaling:
    """How a layer's change is scaled: its alpha, None for none; by sqrt(rank) with `rank_stabilised`.

    `always_limited` says that alpha limits an orthogonal change even if it is 0, as in sd-scripts. `rotation` is PEFT's
    description of an orthogonal change.
    """

    alpha: float | None = None
    rank_stabilised: bool = False
    always_limited: bool = False
    rotation: Rotation = Rotation()

    def of(self, rank: int) -> float:
        """Returns alpha / rank, or alpha / sqrt(rank); 1 without alpha."""
        return 1.0 if self.alpha is None else self.alpha / (math.sqrt(rank) if self.rank_stabilised else rank)


@dataclasses.dataclass(frozen=True)
class Change:
    """The change of one parameter, and what is told of it: the name of its kind and its rank."""

    parameter: Parameter
    delta: Delta
    kind: str
    rank: int | None = None


Dora: TypeAlias = Literal["linear", "trainer"]  # what DoRA does at weights other than 1
_MATRICES = ("hada_", "lokr_", "a1", "a2", "b1", "b2", "oft_")
Pieces = Mapping[str, np.ndarray]
Builder = Callable[[Pieces, Layer, Scaling], list[Change]]


def changes_of(pieces: Pieces, layer: Layer, scaling: Scaling, dora: Dora = "linear") -> list[Change]:
    """Returns the changes of a layer's parameters. Raises Misfit."""
    for name, piece in pieces.items():
        if name != "on_input" and (piece.ndim == 0 or piece.size == 0):
            raise Misfit(f"{name} is {list(piece.shape)}, which holds no vector or matrix")
        if name.startswith(_MATRICES) and piece.ndim < 2:
            raise Misfit(f"{name} is {list(piece.shape)}, and a matrix is needed")
    magnitudes = {name: pieces[name] for name in ("dora_scale", "magnitudes") if name in pieces}
    rest = {name: piece for name, piece in pieces.items() if name not in magnitudes}
    build = next((build for needed, optional, build in KINDS if _are(rest, needed, optional)), None)
    if build is None:
        lacking: list[list[str]] = []
        for needed, optional, _ in KINDS:
            if rest and set(rest) <= {*needed, *optional}:
                lacking.append(sorted(set(needed) - set(rest)))
        fewest: list[str] = min(lacking, key=len, default=[])
        lacks = f": it lacks {', '.join(fewest)}" if fewest else ""
        raise Misfit(f"it has {', '.join(sorted(pieces))}, which is no whole change of any kind{lacks}")
    changes = build(rest, layer, scaling)
    if magnitudes:
        if len(magnitudes) > 1 or len(changes) != 1 or changes[0].kind not in ("LoRA", "LoHa", "LoKr"):
            raise Misfit(f"{' and '.join(sorted(magnitudes))} do not go with its other tensors")
        (name, array) = next(iter(magnitudes.items()))
        changes = [_decomposed(changes[0], name, array, dora)]
    for change in changes:
        _check(change)
    return changes


def _are(pieces: Pieces, needed: Sequence[str], optional: Sequence[str]) -> bool:
    """Returns whether the pieces are all those that a kind needs, and no others than it may have."""
    return bool(pieces) and set(needed) <= set(pieces) <= {*needed, *optional}


def _weight(layer: Layer) -> Parameter:
    return layer.parameters["weight"]


def _shape(parameter: Parameter) -> tuple[int, ...]:
    """Returns the shape of the parameter in PyTorch's layout; a 1x1 convolution that Flax keeps as a matrix is one."""
    return axes.stored_shape(parameter.kind, parameter.shape)


def _low_rank(pieces: Pieces, layer: Layer, scaling: Scaling) -> list[Change]:
    parameter = _weight(layer)
    shape, down, up = _shape(parameter), pieces["down"], pieces["up"]
    if min(down.ndim, up.ndim) < 2:
        raise Misfit(f"lora_down is {list(down.shape)} and lora_up {list(up.shape)}; both have at least two axes")
    rank = up.shape[1]
    if "mid" in pieces:
        mid = pieces["mid"]
        if mid.ndim != 4 or mid.shape[0] != rank or mid.shape[1] != down.shape[0]:
            raise Misfit(f"lora_mid is {list(mid.shape)}, and the ranks are {rank} and {down.shape[0]}")
        wide = [a.astype(np.float32) for a in (mid, down.reshape(down.shape[:2]))]
        down = np.einsum("mn...,nj->mj...", *wide)
    if rank == 0 or down.shape[0] != rank or math.prod(up.shape[2:]) != 1:
        raise Misfit(f"lora_down is {list(down.shape)} and lora_up {list(up.shape)}: their ranks differ")
    taps = shape[2:]
    flat = down.shape[2:] if math.prod(down.shape[2:]) > 1 else ()
    if (up.shape[0], down.shape[1]) != shape[:2] or (flat != taps and math.prod(taps) != 1) or (flat and not taps):
        raise Misfit(f"lora_up {list(up.shape)} times lora_down {list(down.shape)} does not fit a weight {list(shape)}")
    if parameter.kind == "same":  # an embedding, which Flax keeps as PyTorch does
        first, second = up.reshape(up.shape[:2]), down.reshape(down.shape[:2])
    else:
        first = axes.to_flax(parameter.kind, down.reshape(rank, down.shape[1], *taps))
        second = up.reshape(up.shape[:2]).T
    return [Change(parameter, LowRank(first, second, scaling.of(rank)), "LoRA", rank)]


def _loha(pieces: Pieces, layer: Layer, scaling: Scaling) -> list[Change]:
    rank = pieces["hada_w1_b"].shape[0]
    change = LoHa(
        pieces["hada_w1_a"], pieces["hada_w1_b"], pieces["hada_w2_a"], pieces["hada_w2_b"],
        pieces.get("hada_t1"), pieces.get("hada_t2"), scaling.of(rank),
    )  # fmt: skip
    return [Change(_weight(layer), change, "LoHa", rank)]


def _lokr(pieces: Pieces, layer: Layer, scaling: Scaling) -> list[Change]:
    found = {name.removeprefix("lokr_"): piece for name, piece in pieces.items()}
    for factor in "w1", "w2":
        if (factor in found) == (f"{factor}_a" in found) or (f"{factor}_a" in found) != (f"{factor}_b" in found):
            raise Misfit(f"lokr_{factor} is there whole, or as lokr_{factor}_a and lokr_{factor}_b")
    rank = None
    if "t2" in found:
        rank = found["t2"].shape[0]
    elif "w1_a" in found:
        rank = found["w1_a"].shape[1]
    elif "w2_a" in found:
        rank = found["w2_a"].shape[1]
    scale = 1.0 if rank is None else scaling.of(rank)
    return [Change(_weight(layer), LoKr(**found, scale=scale), "LoKr", rank)]


def _ia3(pieces: Pieces, layer: Layer, scaling: Scaling) -> list[Change]:
    on_input = bool(np.any(pieces["on_input"])) if "on_input" in pieces else False
    size, shape = pieces["factors"].size, _shape(_weight(layer))
    if size != shape[1 if on_input else 0]:
        raise Misfit(f"it has {size} factors for a weight {list(shape)}")
    return [Change(_weight(layer), IA3(pieces["factors"], on_input), "(IA)^3")]


def _full(pieces: Pieces, layer: Layer, scaling: Scaling) -> list[Change]:
    """Returns whole differences of weight and bias."""
    kind = "norm" if {"w_norm", "b_norm"} & set(pieces) else "full"
    changes = []
    for names, leaf in (("diff", "w_norm"), "weight"), (("diff_b", "b_norm"), "bias"):
        for name in names:
            if name in pieces:
                if leaf not in layer.parameters:
                    raise Misfit(f"{name}: the layer has no {leaf}")
                parameter, array = layer.parameters[leaf], pieces[name]
                if array.size != math.prod(parameter.shape) or array.shape[:2] != _shape(parameter)[:2]:
                    raise Misfit(f"{name} is {list(array.shape)}, and the {leaf} {list(_shape(parameter))}")
                value = axes.to_flax(parameter.kind, array.reshape(_shape(parameter)))
                changes.append(Change(parameter, Difference(value), kind))
    return changes


def _glora(pieces: Pieces, layer: Layer, scaling: Scaling) -> list[Change]:
    rank = pieces["a2"].shape[0]
    change = GLoRA(pieces["a1"], pieces["a2"], pieces["b1"], pieces["b2"], scaling.of(rank))
    return [Change(_weight(layer), change, "GLoRA", rank)]


def _oft(pieces: Pieces, layer: Layer, scaling: Scaling) -> list[Change]:
    blocks, outputs = pieces["oft_blocks"], _shape(_weight(layer))[0]
    if (
        blocks.ndim not in (3, 4)
        or blocks.shape[-1] != blocks.shape[-2]
        or blocks.shape[-3] * blocks.shape[-1] != outputs
    ):
        raise Misfit(f"oft_blocks are {list(blocks.shape)}, and the layer has {outputs} outputs")
    alpha = scaling.alpha or 0.0
    limit = alpha * outputs if alpha > 0 or scaling.always_limited else None
    kind = OFT if blocks.ndim == 3 else BOFT
    return [Change(_weight(layer), kind(blocks, limit, pieces.get("rescale")), kind.__name__, blocks.shape[-1])]


def _input_oft(pieces: Pieces, layer: Layer, scaling: Scaling) -> list[Change]:
    vectors, shape = pieces["oft_vectors"], _shape(_weight(layer))
    inputs, side = math.prod(shape[1:]), block_side(vectors.shape[-1])
    blocks = inputs // side if side else 0
    if vectors.ndim != 2 or side < 2 or blocks * side != inputs or len(vectors) not in (1, blocks):
        raise Misfit(f"oft_R is {list(vectors.shape)}, which is no triangles of blocks for {inputs} inputs")
    return [Change(_weight(layer), InputOFT(vectors, scaling.rotation), "OFT", side)]


# The names of the pieces that a kind must have, those that it may have besides, and what makes its changes
KINDS: tuple[tuple[tuple[str, ...], tuple[str, ...], Builder], ...] = (
    (("down", "up"), ("mid",), _low_rank),
    (("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"), (), _loha),
    (("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"), (), _loha),
    ((), ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"), _lokr),
    (("factors",), ("on_input",), _ia3),
    ((), ("diff", "diff_b", "w_norm", "b_norm"), _full),
    (("a1", "a2", "b1", "b2"), (), _glora),
    (("oft_blocks",), ("rescale",), _oft),
    (("oft_vectors",), (), _input_oft),
)


def _decomposed(change: Change, name: str, magnitudes: np.ndarray, dora: Dora) -> Change:
    shape = _shape(change.parameter)
    per_input = name == "dora_scale" and magnitudes.ndim > 1 and magnitudes.shape[0] == 1 and magnitudes.shape[1] != 1
    if magnitudes.size != shape[1 if per_input else 0]:
        raise Misfit(f"{name} is {list(magnitudes.shape)}, and the weight {list(shape)}")
    trainers: Convention = "lycoris" if name == "dora_scale" else "peft"
    delta = WeightDecomposed(
        change.delta, magnitudes.reshape(-1), per_input, trainers if dora == "trainer" else "linear"
    )
    return dataclasses.replace(change, delta=delta, kind=f"{change.kind} (DoRA)")


def _check(change: Change) -> None:
    """Raises Misfit unless the change has the parameter's shape. Nothing is computed."""
    import jax  # only here: names and shapes are read without it

    leaf = jax.ShapeDtypeStruct(change.parameter.shape, np.float32)
    try:
        jax.eval_shape(change.delta.difference, leaf)
    except (TypeError, ValueError, IndexError, ZeroDivisionError) as error:
        raise Misfit(str(error).splitlines()[0]) from None
