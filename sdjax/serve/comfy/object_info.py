"""`/object_info`: what the editor must know of each node, made from the definitions."""

from typing import Any

from sdjax.serve.comfy.checking import Names
from sdjax.serve.comfy.definitions import Definition, Input
from sdjax.serve.comfy.nodes import NODES


def object_info(names: Names) -> dict[str, Any]:
    """Returns all nodes. `names` are those of the library's files and of the pictures to work on."""
    return {name: describe(definition, names) for name, definition in NODES.items()}


def describe(definition: Definition, names: Names) -> dict[str, Any]:
    """Returns one node as the editor wants it."""
    required = {one.name: _input(one, names) for one in definition.inputs if not one.optional}
    optional = {one.name: _input(one, names) for one in definition.inputs if one.optional}
    order = {"required": list(required)} | ({"optional": list(optional)} if optional else {})
    return {
        "input": {"required": required, **({"optional": optional} if optional else {}),
                  **({"hidden": {"prompt": "PROMPT"}} if definition.output else {})},
        "input_order": order,
        "output": list(definition.outputs),
        "output_is_list": [False] * len(definition.outputs),
        "output_name": list(definition.names),
        "output_tooltips": [],
        "name": definition.name,
        "display_name": definition.title,
        "description": definition.purpose,
        "python_module": "nodes",
        "category": definition.category,
        "output_node": definition.output,
        "deprecated": False,
        "experimental": False,
    }  # fmt: skip


def _input(one: Input, names: Names) -> list[Any]:
    if one.kind == "COMBO":
        choices = [*(names.names(one.files) if one.files else ()), *one.choices]
        options: dict[str, Any] = {} if one.default is None else {"default": one.default}
        if one.upload:
            options["image_upload"] = True
        return [choices, options]
    if not one.is_value:
        return [one.kind, {}]
    options = {"default": one.default}
    for key, value in ("min", one.low), ("max", one.high), ("step", one.step):
        if value is not None:
            options[key] = int(value) if one.kind == "INT" else value
    if one.kind == "STRING":
        options |= {"multiline": one.multiline, "dynamicPrompts": one.multiline}
    if one.after:
        options["control_after_generate"] = True
    return [one.kind, options]
