"""Running a graph: only the nodes that its outputs need, and of these only those that changed since the last run."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from sdjax.serve.comfy.checking import Checked
from sdjax.serve.comfy.definitions import Shown
from sdjax.serve.comfy.graph import Graph, Link
from sdjax.serve.comfy.host import Cancelled, Host, Run
from sdjax.serve.comfy.nodes import NODES

HOLD_MODELS = ("MODEL", "CLIP", "VAE", "CLIP_VISION", "UPSCALE_MODEL", "GUIDER")  # types of outputs


class NodeError(ValueError):
    """A node failed. `number` and `kind` are its id and class."""

    def __init__(self, number: str, kind: str, reason: str) -> None:
        self.number, self.kind, self.reason = number, kind, reason
        super().__init__(f"node {number} ({kind}): {reason}")


class Kept(NamedTuple):
    """The outputs of a node, and what it showed."""

    outputs: tuple[Any, ...]
    ui: dict[str, list[Any]] | None


class Cache:
    """The outputs of the last run's nodes, by their signatures.

    Not `keeps_models`: outputs that hold models are forgotten after a run, so that somebody else decides how long
    models stay in memory.
    """

    def __init__(self, *, keeps_models: bool = True) -> None:
        self.kept: dict[str, Kept] = {}
        self.keeps_models = keeps_models

    def keep_only(self, current: Mapping[str, str]) -> None:
        """Forgets what the last run did not use. `current` are the classes of its nodes by signature."""
        for one in list(self.kept):
            holds = one in current and not self.keeps_models and set(NODES[current[one]].outputs) & set(HOLD_MODELS)
            if one not in current or holds:
                del self.kept[one]


def run(
    checked: Checked, host: Host, cache: Cache | None = None, workflow: Mapping[str, Any] | None = None
) -> dict[str, dict[str, list[Any]]]:
    """Runs a graph that was checked, and returns what its output nodes show, by id.

    `cache` keeps outputs from run to run: a node whose values and whose sources are the same is not run again.
    `workflow` is what the editor wants to find in the saved pictures. Raises NodeError for a node that fails, and
    Cancelled.
    """
    cache = Cache() if cache is None else cache
    graph = checked.graph
    order = graph.order(checked.outputs)
    signatures = _signatures(checked, order, host)
    have = {number: cache.kept[signatures[number]] for number in order if signatures[number] in cache.kept}
    for number in have:
        host.node("cached", number)
    needed = _needed(graph, checked.outputs, have)
    shown: dict[str, dict[str, list[Any]]] = {}
    for number in order:
        if number in needed and number not in have:
            if host.cancelled():
                raise Cancelled
            host.node("executing", number)
            have[number] = cache.kept[signatures[number]] = _compute(checked, number, have, host, workflow)
        ui = have[number].ui if number in have else None
        if ui is not None:
            shown[number] = ui
            host.node("executed", number, ui)
    cache.keep_only({signatures[number]: graph.nodes[number].kind for number in order})
    return shown


def _needed(graph: Graph, outputs: Iterable[str], have: Mapping[str, Any]) -> set[str]:
    """Returns the nodes that must be there: the outputs, and what those that are not kept need."""
    needed: set[str] = set()
    todo = list(outputs)
    while todo:
        number = todo.pop()
        if number in needed:
            continue
        needed.add(number)
        if number not in have:
            todo += [link.node for link in graph.nodes[number].links.values()]
    return needed


def _compute(
    checked: Checked, number: str, have: Mapping[str, Kept], host: Host, workflow: Mapping[str, Any] | None
) -> Kept:
    node = checked.graph.nodes[number]
    definition = NODES[node.kind]
    values: dict[str, Any] = dict(checked.values[number])
    for name, link in node.links.items():
        if definition.input(name) is not None:
            values[name] = have[link.node].outputs[link.output]
    try:
        made = definition.function(Run(host, number, checked.graph, workflow), **values)
    except (Cancelled, MemoryError):
        raise
    except (ValueError, OSError) as error:
        raise NodeError(number, node.kind, str(error)) from error
    if isinstance(made, Shown):
        return Kept((), made.ui)
    return Kept(tuple(made), None)


def _signatures(checked: Checked, order: Iterable[str], host: Host) -> dict[str, str]:
    """Returns what decides each node's outputs, as a hash: its class, its values, its files and its sources."""
    out: dict[str, str] = {}
    for number in order:
        node = checked.graph.nodes[number]
        parts: list[Any] = [node.kind]
        for one in NODES[node.kind].inputs:
            value = node.inputs.get(one.name)
            if isinstance(value, Link):
                parts.append([one.name, out[value.node], value.output])
                continue
            value = checked.values[number].get(one.name)
            parts.append([one.name, value])
            if one.files is not None and value is not None and value not in one.choices:
                parts.append(_stamp(host, one.files, value))
        out[number] = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
    return out


def _stamp(host: Host, kind: str, name: str) -> str:
    """Returns what changes with a file's content."""
    try:
        if kind == "input":
            return hashlib.sha256(host.picture(name).tobytes()).hexdigest()
        if kind == "latent":
            return hashlib.sha256(host.latent(name)).hexdigest()
        if kind == "checkpoint":
            return ""
        stat = host.file(kind, name).stat()
        return f"{stat.st_size} {stat.st_mtime_ns}"
    except (OSError, ValueError):
        return ""
