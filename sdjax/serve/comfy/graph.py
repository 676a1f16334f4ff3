"""ComfyUI's graphs in API form: {id: {"class_type": name, "inputs": {name: value, or link [id, number of output]}}}.

A graph comes from outside. Its size, depth and texts are bounded, and nothing in it chooses code: a node is a name of
`sdjax.serve.comfy.definitions.NODES`.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

MOST_NODES = 2000
MOST_INPUTS = 200  # of a node
LONGEST_TEXT = 100_000  # characters of an input
MOST_BYTES = 8 * 2**20  # of a workflow file

Value: TypeAlias = Any  # JSON


class GraphError(ValueError):
    """A graph that cannot be run. `nodes` has what is wrong with each node, by its id; one sentence each."""

    def __init__(self, message: str, nodes: Mapping[str, list[str]] | None = None) -> None:
        self.nodes = dict(nodes or {})
        lines = [f"node {number}: {line}" for number, found in self.nodes.items() for line in found]
        super().__init__("\n".join([message, *lines]))


@dataclasses.dataclass(frozen=True)
class Link:
    """An output of another node."""

    node: str
    output: int


@dataclasses.dataclass(frozen=True)
class Node:
    """A node: its class, and its inputs' values and links. `title` is the one that the user gave it, for messages."""

    kind: str
    inputs: Mapping[str, Value | Link]
    title: str = ""

    @property
    def links(self) -> dict[str, Link]:
        """The inputs that come from other nodes."""
        return {name: value for name, value in self.inputs.items() if isinstance(value, Link)}


@dataclasses.dataclass(frozen=True)
class Graph:
    """The nodes by id."""

    nodes: Mapping[str, Node]

    def order(self, wanted: Iterable[str]) -> list[str]:
        """Returns the nodes that the `wanted` ones need, those first that others need. There is no recursion.

        Raises GraphError for links that form a circle.
        """
        done: dict[str, bool] = {}  # False while a node's inputs are being listed
        out: list[str] = []
        for last in wanted:
            stack = [(last, False)]
            while stack:
                number, finished = stack.pop()
                if finished:
                    done[number] = True
                    out.append(number)
                    continue
                if number in done:
                    if not done[number]:
                        raise GraphError("the graph's links form a circle", {number: ["it needs its own output"]})
                    continue
                done[number] = False
                stack.append((number, True))
                for link in self.nodes[number].links.values():
                    if link.node in self.nodes and done.get(link.node) is not True:
                        stack.append((link.node, False))
        return out

    def replace(self, number: str, name: str, value: Value) -> "Graph":
        """Returns the graph with another value of a node's input. Raises GraphError for an unknown node."""
        if number not in self.nodes:
            raise GraphError(f"there is no node {number}; the graph has {', '.join(list(self.nodes)[:50])}")
        node = self.nodes[number]
        changed = dataclasses.replace(node, inputs={**node.inputs, name: value})
        return Graph({**self.nodes, number: changed})

    def to_json(self) -> dict[str, Any]:
        """Returns the graph in API form."""
        return {
            number: {
                "class_type": node.kind,
                "inputs": {
                    name: [value.node, value.output] if isinstance(value, Link) else value
                    for name, value in node.inputs.items()
                },
                **({"_meta": {"title": node.title}} if node.title else {}),
            }
            for number, node in self.nodes.items()
        }


def read_api_form(value: Any) -> Graph:
    """Returns the graph of a decoded API form. Raises GraphError for anything else, and for graphs that are too large.

    Nodes whose class is unknown are kept: `sdjax.serve.comfy.checking` names them all at once.
    """
    if not isinstance(value, Mapping) or not value:
        raise GraphError('a graph in API form is an object of nodes, such as {"3": {"class_type": ...}}')
    if len(value) > MOST_NODES:
        raise GraphError(f"a graph has at most {MOST_NODES} nodes; got {len(value)}")
    nodes = {}
    for number, node in value.items():
        if not isinstance(node, Mapping) or not isinstance(node.get("class_type"), str):
            raise GraphError("every node of a graph in API form has a class_type", {str(number)[:40]: ["it has none"]})
        nodes[str(number)] = _node(str(number), node)
    return Graph(nodes)


def _node(number: str, node: Mapping[str, Any]) -> Node:
    inputs = node.get("inputs") or {}
    meta = node.get("_meta")
    title = meta.get("title", "") if isinstance(meta, Mapping) else ""
    if not isinstance(inputs, Mapping) or len(inputs) > MOST_INPUTS:
        raise GraphError("a node's inputs are an object", {number[:40]: [f"it needs at most {MOST_INPUTS} of them"]})
    read = {str(name): _link_or_value(number, str(name), value) for name, value in inputs.items()}
    return Node(node["class_type"][:200], read, title[:200] if isinstance(title, str) else "")


def _link_or_value(number: str, name: str, value: Value) -> Value | Link:
    if isinstance(value, str) and len(value) > LONGEST_TEXT:
        raise GraphError(f"a text has at most {LONGEST_TEXT} characters", {number: [f"{name[:40]} has {len(value)}"]})
    if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str | int) and type(value[1]) is int:
        return Link(str(value[0]), value[1])
    if isinstance(value, Mapping) and set(value) == {"__value__"}:  # how a list that is no link is written
        return value["__value__"]
    return value
