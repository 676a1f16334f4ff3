"""ComfyUI's workflows in UI form, as its editor saves them, to API form.

A node's values stand in `widgets_values` in the order of its widgets, which the definition of the node gives. Notes and
reroutes are left out, muted nodes are removed, bypassed nodes pass their inputs on, values of primitive nodes are put
in, and nodes of a subgraph stand beside those of the graph.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sdjax.serve.comfy.definitions import Definition
from sdjax.serve.comfy.graph import MOST_NODES, Graph, GraphError, read_api_form
from sdjax.serve.comfy.nodes import NODES

MUTED, BYPASSED = 2, 4  # values of `mode`
NOTES = ("Note", "MarkdownNote")
REROUTE, PRIMITIVE = "Reroute", "PrimitiveNode"
AFTER = ("fixed", "increment", "decrement", "randomize", True, False)  # what happens to a seed after a run
DEEPEST = 20  # subgraphs in subgraphs
LONGEST_WAY = 1000  # nodes that only pass something on
INPUT, OUTPUT = "-10", "-20"  # ids of a subgraph's own inputs and outputs, as nodes

Source = tuple[str, int]  # (node, number of its output)


class Flat(NamedTuple):
    """A graph without subgraphs: nodes by id, and what each of a node's inputs is linked to."""

    nodes: dict[str, Mapping[str, Any]]
    sources: dict[tuple[str, int], Source]


def is_ui_form(value: Any) -> bool:
    """Returns whether a decoded file is a workflow in UI form."""
    return isinstance(value, Mapping) and isinstance(value.get("nodes"), list)


def read_ui_form(value: Mapping[str, Any]) -> Graph:
    """Returns the graph of a decoded workflow in UI form. Raises GraphError for one that is damaged or too large."""
    definitions = value.get("definitions")
    subgraphs = definitions.get("subgraphs", []) if isinstance(definitions, Mapping) else []
    known = {str(one.get("id")): one for one in subgraphs if isinstance(one, Mapping)}
    flat = Flat({}, {})
    _add(flat, value, known, "", {}, 0)
    api: dict[str, Any] = {}
    for number, node in flat.nodes.items():
        kind = node["type"]
        if kind in (*NOTES, REROUTE, PRIMITIVE) or node.get("mode") in (MUTED, BYPASSED):
            continue
        inputs = _values(kind, node)
        for slot, one in enumerate(_slots(node)):
            found = _source(flat, (number, slot))
            if found is None:
                continue
            origin = flat.nodes[found[0]]
            if origin["type"] == PRIMITIVE:
                values = origin.get("widgets_values")
                inputs[one["name"]] = values[0] if isinstance(values, list) and values else None
            else:
                inputs[one["name"]] = [*found]
        title = node.get("title")
        api[number] = {
            "class_type": kind, "inputs": inputs, "_meta": {"title": title if isinstance(title, str) else ""},
        }  # fmt: skip
    return read_api_form(api)


def _add(
    flat: Flat, graph: Mapping[str, Any], known: Mapping[str, Any], before: str, outer: Mapping[int, Source | None],
    depth: int,
) -> dict[int, Source | None]:  # fmt: skip
    """Adds a graph's nodes with `before` in front of their ids. Returns what its outputs are linked to.

    `outer` are the sources of a subgraph's inputs.
    """
    nodes, links = graph.get("nodes"), graph.get("links", [])
    if not isinstance(nodes, list) or not isinstance(links, list):
        raise GraphError("a workflow in UI form has lists of nodes and links")
    if depth > DEEPEST:
        raise GraphError(f"a workflow has at most {DEEPEST} subgraphs in each other")
    if len(flat.nodes) + len(nodes) > MOST_NODES:
        raise GraphError(f"a workflow has at most {MOST_NODES} nodes")
    inside: dict[str, Mapping[int, Source | None]] = {}  # outputs of each subgraph
    ends: dict[tuple[str, int], Source] = {}
    for one in links:
        origin, slot, target, target_slot = _link(one)
        ends[before + target if target != OUTPUT else OUTPUT, target_slot] = (
            before + origin if origin != INPUT else INPUT, slot,
        )  # fmt: skip

    def resolved(at: tuple[str, int]) -> Source | None:
        found = ends.get(at)
        if found is None:
            return None
        if found[0] == INPUT:
            return outer.get(found[1])
        return inside[found[0]].get(found[1]) if found[0] in inside else found

    todo = []
    for node in nodes:
        if not isinstance(node, Mapping) or not isinstance(node.get("type"), str) or "id" not in node:
            raise GraphError("every node of a workflow has an id and a type")
        number = f"{before}{node['id']}"
        if node["type"] in known and node.get("mode") not in (MUTED, BYPASSED):
            todo.append((number, node))
        else:
            flat.nodes[number] = node
    for number, node in _inner_first(todo, ends):
        sources = {slot: resolved((number, slot)) for slot in range(len(_slots(node)))}
        inside[number] = _add(flat, known[node["type"]], known, f"{number}:", sources, depth + 1)
    for at in ends:
        found = resolved(at)
        if at[0] != OUTPUT and at[0] not in inside and found is not None:
            flat.sources[at] = found
    return {slot: resolved((OUTPUT, slot)) for target, slot in ends if target == OUTPUT}


def _inner_first(
    todo: Sequence[tuple[str, Mapping[str, Any]]], ends: Mapping[tuple[str, int], Source]
) -> list[tuple[str, Mapping[str, Any]]]:
    """Returns subgraphs in an order in which those that feed others come first."""
    names = {number for number, _ in todo}
    needs = {number: {origin for (target, _), (origin, _) in ends.items() if target == number} & names
             for number, _ in todo}  # fmt: skip
    out: list[tuple[str, Mapping[str, Any]]] = []
    left = list(todo)
    while left:
        placed = {number for number, _ in out}
        ready = [pair for pair in left if needs[pair[0]] <= placed]
        if not ready:
            raise GraphError("the workflow's subgraphs form a circle")
        out += ready
        left = [pair for pair in left if pair not in ready]
    return out


def _link(one: Any) -> tuple[str, int, str, int]:
    """Returns (node, output, node, input) of a link: a list of six, or an object in a subgraph."""
    if isinstance(one, Mapping):
        parts = [one.get(key) for key in ("origin_id", "origin_slot", "target_id", "target_slot")]
    elif isinstance(one, list) and len(one) >= 5:
        parts = one[1:5]
    else:
        raise GraphError("a link of a workflow is [id, node, output, node, input, type]")
    if not all(isinstance(part, int | str) for part in parts):
        raise GraphError("a link of a workflow names nodes and numbers of inputs and outputs")
    try:
        return str(parts[0]), int(parts[1]), str(parts[2]), int(parts[3])  # type: ignore[arg-type]
    except ValueError:
        raise GraphError("a link of a workflow names inputs and outputs by number") from None


def _slots(node: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    slots = node.get("inputs") or []
    if not isinstance(slots, list):
        raise GraphError("a node's inputs are a list")
    return [one if isinstance(one, Mapping) and isinstance(one.get("name"), str) else {"name": ""} for one in slots]


def _source(flat: Flat, at: tuple[str, int]) -> Source | None:
    """Returns where an input comes from, through reroutes and bypassed nodes; None if it is not linked to a node."""
    for _ in range(LONGEST_WAY):
        found = flat.sources.get(at)
        if found is None or found[0] not in flat.nodes:
            return None
        node = flat.nodes[found[0]]
        if node["type"] == REROUTE:
            at = (found[0], 0)
        elif node.get("mode") == BYPASSED:
            slot = _passed_on(node, found[1])
            if slot is None:
                return None
            at = (found[0], slot)
        elif node.get("mode") == MUTED:
            return None
        else:
            return found
    raise GraphError("the workflow's reroutes form a circle")


def _passed_on(node: Mapping[str, Any], output: int) -> int | None:
    """Returns the input that a bypassed node gives out: of the output's type, at the same place if there is one."""
    outputs = node.get("outputs")
    if not isinstance(outputs, list) or not 0 <= output < len(outputs) or not isinstance(outputs[output], Mapping):
        return None
    kind = outputs[output].get("type")
    same = [slot for slot, one in enumerate(_slots(node)) if one.get("type") == kind]
    return output if output in same else same[0] if same else None


def _values(kind: str, node: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values of a node's own inputs by name; none for a node that is not known."""
    values = node.get("widgets_values")
    definition = NODES.get(kind)
    if definition is None or values is None:
        return {}
    if isinstance(values, Mapping):
        return {name: value for name, value in values.items() if definition.input(str(name)) is not None}
    if not isinstance(values, list):
        raise GraphError("a node's widgets_values are a list")
    return _in_order(definition, values)


def _in_order(definition: Definition, values: list[Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    at = 0
    for one in definition.inputs:
        if not one.is_value:
            continue
        if at >= len(values):
            break
        out[one.name] = values[at]
        at += 1
        # a list holds booleans here only in workflows of the first editors
        if one.after and at < len(values) and any(values[at] is word or values[at] == word for word in AFTER):
            at += 1
        if one.upload:
            at += 1
    return out
