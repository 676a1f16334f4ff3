"""Checks of a graph before anything runs: unknown nodes with their nearest known, wrong inputs, files that are missing.

Everything that is wrong is found at once (`GraphError.nodes`).
"""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, Protocol

from sdjax.serve.comfy.definitions import Definition, Input, converted
from sdjax.serve.comfy.graph import Graph, GraphError, Link
from sdjax.serve.comfy.nodes import NODES

ANY = "*"


class Names(Protocol):
    """Where names of files are looked up."""

    def names(self, kind: str) -> list[str]:
        """Returns the names of the files of a kind."""
        ...

    def has(self, kind: str, name: str) -> bool:
        """Returns whether a name stands for a file."""
        ...


@dataclasses.dataclass(frozen=True)
class Checked:
    """A graph that can be run: its output nodes, and the converted values of each node's own inputs."""

    graph: Graph
    outputs: tuple[str, ...]
    values: Mapping[str, Mapping[str, Any]]


def check(graph: Graph, names: Names | None = None) -> Checked:
    """Returns the graph, checked. Only nodes that its outputs need must be right; but every class must be known.

    Without `names`, files are not looked up. Raises GraphError with all that is wrong.
    """
    wrong: dict[str, list[str]] = {}
    for number, node in graph.nodes.items():
        if node.kind not in NODES:
            near = difflib.get_close_matches(node.kind, NODES, 3, 0.5)
            meant = f"; the nearest known: {', '.join(near)}" if near else ""
            wrong[number] = [f"unknown node {node.kind!r}{meant}"]
    if wrong:
        raise GraphError("the graph has nodes that are not known here", wrong)
    outputs = tuple(number for number, node in graph.nodes.items() if NODES[node.kind].output)
    if not outputs:
        raise GraphError("the graph has no output node, such as SaveImage or PreviewImage")
    missing = {
        number: [f"{name} comes from node {link.node}, which is not there"]
        for number, node in graph.nodes.items()
        for name, link in node.links.items()
        if link.node not in graph.nodes
    }
    if missing:
        raise GraphError("the graph has links to nodes that are not there", missing)
    values: dict[str, Mapping[str, Any]] = {}
    for number in graph.order(outputs):
        values[number], found = _node(graph, number, names)
        if found:
            wrong[number] = found
    if wrong:
        raise GraphError("the graph cannot be run", wrong)
    return Checked(graph, outputs, values)


def _node(graph: Graph, number: str, names: Names | None) -> tuple[dict[str, Any], list[str]]:
    """Returns a node's own values, and what is wrong with it."""
    node, wrong = graph.nodes[number], []
    definition = NODES[node.kind]
    values: dict[str, Any] = {}
    for one in definition.inputs:
        value = node.inputs.get(one.name)
        try:
            if isinstance(value, Link):
                _check_link(graph, one, value)
            elif not one.is_value:
                if value is not None or not one.optional:
                    raise ValueError(f"the input {one.name} ({one.kind}) is not linked")
                values[one.name] = None
            elif one.name in node.inputs and value is not None:
                values[one.name] = _value(one, value, names)
            elif one.default is not None or one.optional:
                values[one.name] = one.default
            else:
                raise ValueError(f"the input {one.name} is missing")
        except ValueError as error:
            wrong.append(str(error))
    return values, wrong


def _check_link(graph: Graph, one: Input, link: Link) -> None:
    source: Definition = NODES[graph.nodes[link.node].kind]
    if not 0 <= link.output < len(source.outputs):
        raise ValueError(f"{one.name} is output {link.output} of node {link.node}, which has {len(source.outputs)}")
    given = source.outputs[link.output]
    if ANY not in (given, one.kind) and given != one.kind:
        texts = given in ("STRING", "COMBO") and one.kind in ("STRING", "COMBO")
        numbers = given in ("INT", "FLOAT") and one.kind in ("INT", "FLOAT")
        if not (texts or numbers):
            raise ValueError(f"{one.name} is a {one.kind}; node {link.node} gives a {given}")


def _value(one: Input, value: Any, names: Names | None) -> Any:
    value = converted(one, value)
    if one.files is None or names is None or value in one.choices:
        return value
    if names.has(one.files, value):
        return value
    known = names.names(one.files)
    near = difflib.get_close_matches(value, known, 1, 0.4)
    meant = f"; the nearest is {near[0]!r}" if near else f"; there are {', '.join(known[:10]) or 'none'}"
    raise ValueError(f"{one.name}: there is no {value[:200]!r}{meant}")
