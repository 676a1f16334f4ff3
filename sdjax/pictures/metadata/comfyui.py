"""ComfyUI's API prompt: the usual graph of text to image, from the saved picture back to the checkpoint.

A prompt is {id: {"class_type": name, "inputs": {name: value or link}}}; a link is [id, number of the output]. Nodes
that are not in the usual graph are named as not understood.
"""

from collections.abc import Mapping
from typing import Any

from sdjax.pictures.metadata.found import Found, Item, item, number, shorten, table, unknown, whole, words

SAMPLERS = ("KSampler", "KSamplerAdvanced")
SAVERS = ("SaveImage", "PreviewImage", "SaveAnimatedWEBP")
THROUGH = {  # nodes that only pass something on: the input that leads further
    "Reroute": "",
    "VAEDecode": "samples",
    "VAEDecodeTiled": "samples",
}
MAX_NODES = 5000
MAX_WAY = 100  # nodes from one end of the graph to the other

Node = Mapping[str, Any]


class Graph:
    """The nodes of a prompt. `used` are the ids of those that were understood."""

    def __init__(self, nodes: dict[str, Any]) -> None:
        if not 1 <= len(nodes) <= MAX_NODES:
            raise ValueError(f"a graph has 1 to {MAX_NODES} nodes; got {len(nodes)}")
        for node in nodes.values():
            right = isinstance(node, dict) and isinstance(node.get("class_type"), str)
            if not right or not isinstance(node.get("inputs", {}), dict):
                raise ValueError("it is not a ComfyUI graph: every node has a class_type and inputs")
        self.nodes: dict[str, Any] = nodes
        self.used: set[str] = set()

    def kind(self, number: str) -> str:
        """Returns a node's class."""
        return self.nodes[number]["class_type"]

    def input(self, number: str, name: str) -> Any:
        """Returns an input's value or link; None if it is not there."""
        return self.nodes[number].get("inputs", {}).get(name)

    def linked(self, value: Any) -> str | None:
        """Returns the id of the node that a link leads to; None if the value is no link."""
        is_link = isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)
        return value[0] if is_link and value[0] in self.nodes else None

    def before(self, number: str, name: str) -> str | None:
        """Returns the node that gives an input. Nodes that only pass it on are left out."""
        found = self.linked(self.input(number, name))
        for _ in range(MAX_WAY):
            if found is None or self.kind(found) not in THROUGH:
                return found
            self.used.add(found)
            inputs = self.nodes[found].get("inputs", {})
            further = THROUGH[self.kind(found)] or next(iter(inputs), "")
            found = self.linked(inputs.get(further))
        return None


def read(text: str) -> Found:
    """Returns what the graph says. Raises ValueError if it has no sampler, or several without one that is saved."""
    graph = Graph(table(text))
    sampler = _sampler(graph)
    graph.used.add(sampler)
    items = _of_sampler(graph, sampler)
    needs: tuple[str, ...] = ()
    for side, name in ("positive", "prompt"), ("negative", "negative_prompt"):
        items += _of_prompt(graph, sampler, side, name)
    latent = graph.before(sampler, "latent_image")
    if latent is not None and graph.kind(latent) == "EmptyLatentImage":
        graph.used.add(latent)
        items += [
            item(f"EmptyLatentImage {key}", whole(graph.input(latent, key)), key)
            for key in ("width", "height")
            if graph.input(latent, key) is not None
        ]
        if graph.input(latent, "batch_size") not in (None, 1):
            items.append(
                unknown(
                    "batch_size", f"{graph.input(latent, 'batch_size')}: the file does not say which picture this is"
                )
            )
    else:
        needs = ("a latent that does not start from noise alone",)
    model = _of_model(graph, sampler, items)
    items += [unknown(graph.kind(one), _shown(graph.nodes[one])) for one in graph.nodes if not _is_used(graph, one)]
    return Found("comfyui", tuple(items), model, needs)


def _is_used(graph: Graph, number: str) -> bool:
    return number in graph.used or graph.kind(number) in (*SAVERS, "VAELoader", "VAEDecode", "Note")


def _sampler(graph: Graph) -> str:
    """Returns the id of the sampler whose picture is saved."""
    samplers = [number for number in graph.nodes if graph.kind(number) in SAMPLERS]
    if not samplers:
        raise ValueError(f"the graph has no {' and no '.join(SAMPLERS)}: only the usual graph is understood")
    saved = [graph.before(number, "images") for number in graph.nodes if graph.kind(number) in SAVERS]
    last = [number for number in samplers if number in saved]
    if len(samplers) > 1 and len(last) != 1:
        raise ValueError(f"the graph has {len(samplers)} samplers, and it is not clear which one made this picture")
    return (last or samplers)[0]


def _of_sampler(graph: Graph, number: str) -> list[Item]:
    """Returns the items of a sampler node."""
    kind = graph.kind(number)
    wanted = {
        "seed" if kind == "KSampler" else "noise_seed": ("seed", whole),
        "steps": ("num_steps", whole),
        "cfg": ("guidance_scale", _number),
        "sampler_name": ("sampler", _name),
        "scheduler": ("schedule", _name),
    }
    items = []
    for key, (name, reader) in wanted.items():
        value = graph.input(number, key)
        if value is None or graph.linked(value) is not None:
            items.append(unknown(f"{kind} {key}", "missing, or computed by another node"))
            continue
        try:
            items.append(item(f"{kind} {key}", reader(value), name))
        except ValueError as error:
            raise ValueError(f"{kind} {key}: {error}") from None
    steps = graph.input(number, "steps")
    whole_run = {
        "denoise": lambda value: value == 1,
        "add_noise": lambda value: value == "enable",
        "start_at_step": lambda value: value == 0,
        "end_at_step": lambda value: isinstance(value, int) and isinstance(steps, int) and value >= steps,
        "return_with_leftover_noise": lambda value: value == "disable",
    }
    for key, usual in whole_run.items():
        value = graph.input(number, key)
        if value is not None and not usual(value):
            items.append(unknown(f"{kind} {key}", value))
    return items


def _of_prompt(graph: Graph, sampler: str, side: str, name: str) -> list[Item]:
    """Returns the item of one of the sampler's prompts."""
    node = graph.before(sampler, side)
    if node is None or graph.kind(node) != "CLIPTextEncode":
        kind = "nothing" if node is None else graph.kind(node)
        return [unknown(f"{side} prompt", f"made by {kind}, not by CLIPTextEncode")]
    text = graph.input(node, "text")
    if not isinstance(text, str):
        return [unknown(f"{side} prompt", "made by another node")]
    graph.used.add(node)
    items = [item(f"{side} prompt", words(text), name)]
    before = graph.before(node, "clip")
    if side == "positive" and before is not None and graph.kind(before) == "CLIPSetLastLayer":
        layer = graph.input(before, "stop_at_clip_layer")
        items.append(item("CLIPSetLastLayer stop_at_clip_layer", whole(layer), "clip_skip"))
    if before is not None and graph.kind(before) == "CLIPSetLastLayer":
        graph.used.add(before)
    return items


def _of_model(graph: Graph, sampler: str, items: list[Item]) -> dict[str, str]:
    """Returns the checkpoint's name. Adds nodes between it and the sampler, such as LoraLoader, as not understood."""
    node = graph.before(sampler, "model")
    for _ in range(MAX_WAY):
        if node is None:
            return {}
        graph.used.add(node)
        if graph.kind(node).startswith("CheckpointLoader"):
            name = graph.input(node, "ckpt_name")
            return {"name": shorten(name)} if isinstance(name, str) else {}
        items.append(unknown(graph.kind(node), _shown(graph.nodes[node])))
        node = graph.before(node, "model")
    return {}


def _shown(node: Node) -> str:
    inputs = node.get("inputs", {})
    return ", ".join(f"{key} {value}" for key, value in list(inputs.items())[:20] if not isinstance(value, list | dict))


def _number(value: Any) -> float:
    return number(value)


def _name(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("expected a name")
    return value
