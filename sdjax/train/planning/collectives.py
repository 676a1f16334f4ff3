"""Communication of a training step: the collectives of its compiled program, with their bytes.

A step is compiled for devices that need not compute: CPUs that XLA pretends to have
(`--xla_force_host_platform_device_count`), or a described TPU topology. Nothing is allocated.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from sdjax.train import parallel
from sdjax.train.build import Setup

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
_OPERATION = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(")
_ARRAY = re.compile(r"(pred|bf16|[suf]\d+\w*)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_CALL = re.compile(r"(?:body|to_apply|calls|condition|branch_computations)=(%?[\w.\-]+|\{[^}]*\})")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


class Collective(NamedTuple):
    """A collective operation: its kind, the bytes of its result on one device, and how often a step runs it."""

    kind: str
    size: int
    times: int

    @property
    def total(self) -> int:
        """Bytes of all its runs in a step."""
        return self.size * self.times


def collectives(program: str) -> list[Collective]:
    """Returns the collectives in the text of a compiled program (`compiled.as_text()`), in its order.

    Those in the body of a loop count once for each of its rounds; a loop of unknown length counts as one round.
    """
    bodies = dict(_computations(program))
    entry = next((name for name, lines in bodies.items() if lines and lines[0].startswith("ENTRY")), None)
    if entry is None:
        raise ValueError("this is no text of a compiled program: it has no ENTRY")
    return list(_within(entry, bodies, 1))


def totals(found: list[Collective]) -> dict[str, int]:
    """Returns the bytes of each kind of collective in a step, on one device."""
    kinds = dict.fromkeys(kind for kind in KINDS if any(one.kind == kind for one in found))
    return {kind: sum(one.total for one in found if one.kind == kind) for kind in kinds}


def compile_for(setup: Setup, mesh: Mesh) -> jax.stages.Compiled:
    """Returns the compiled training step of a run for the devices of a mesh. They need not be able to run it."""
    how = setup.config.parallel
    state, frozen = setup.shapes
    where, frozen_where = (parallel.shardings(tree, mesh, how) for tree in (state, frozen))
    step = parallel.compile_step(setup.step(setup.empty_shape()), mesh, where, frozen_where, how)
    numbers = jax.tree.map(lambda n: jax.ShapeDtypeStruct(jnp.shape(n), jnp.result_type(n)), setup.numbers)
    return step.lower(state, frozen, setup.batch_shapes(), numbers).compile()  # type: ignore[attr-defined]


def _computations(program: str) -> Iterator[tuple[str, list[str]]]:
    name, lines = "", list[str]()
    for line in program.splitlines():
        if match := _COMPUTATION.match(line):
            name, lines = match[1], [line]
        elif line == "}":
            yield name, lines
        else:
            lines.append(line)


def _within(name: str, bodies: dict[str, list[str]], times: int) -> Iterator[Collective]:
    for line in bodies.get(name, [])[1:]:
        if match := _OPERATION.search(line):
            yield Collective(match[2], _bytes(match[1], match[2], match[3] is not None), times)
            continue
        rounds = int(match[1]) if " while(" in line and (match := _TRIPS.search(line)) else 1
        for match in _CALL.finditer(line):
            for called in re.findall(r"[\w.\-]+", match[1]):
                yield from _within(called, bodies, times * rounds)


def _bytes(result: str, kind: str, started: bool) -> int:
    """Returns the bytes of a result's arrays. The result of a started collective may hold its operands before it."""
    arrays = [
        (dtype, math.prod(int(side) for side in sides.split(",") if side)) for dtype, sides in _ARRAY.findall(result)
    ]
    if started and kind in ("all-gather", "collective-permute"):
        arrays = arrays[1:2]
    return sum(_width(dtype) * count for dtype, count in arrays)


def _width(dtype: str) -> int:
    if dtype == "pred":
        return 1
    return max(1, int(re.search(r"\d+", dtype)[0]) // 8)  # type: ignore[index]
