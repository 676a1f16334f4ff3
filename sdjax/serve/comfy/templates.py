"""The example workflows of comfyui-workflow-templates, where it is installed: those that can be run here."""

import functools
import json
from pathlib import Path
from typing import Any

from sdjax.serve.comfy.graph import GraphError
from sdjax.serve.comfy.installed import folder_of
from sdjax.serve.comfy.nodes import NODES
from sdjax.serve.comfy.reading import read_workflow

PACKAGE = "comfyui_workflow_templates"


@functools.cache
def files() -> dict[str, Path]:
    """Returns the package's files by name; none without the package."""
    place = folder_of(PACKAGE, "templates")
    return {} if place is None else {path.name: path for path in place.iterdir() if path.is_file()}


@functools.cache
def index() -> bytes:
    """Returns the package's list of workflows as JSON, without those that have unknown nodes."""
    listed = files().get("index.json")
    if listed is None:
        return b"[]"
    chapters: list[dict[str, Any]] = json.loads(listed.read_text(encoding="utf-8"))
    for chapter in chapters:
        chapter["templates"] = [one for one in chapter.get("templates", []) if _runs(f"{one.get('name')}.json")]
    return json.dumps([chapter for chapter in chapters if chapter["templates"]]).encode()


def _runs(name: str) -> bool:
    """Returns whether all nodes of a workflow are known."""
    if name not in files():
        return False
    try:
        graph = read_workflow(files()[name].read_bytes())
    except (GraphError, OSError):
        return False
    return all(node.kind in NODES for node in graph.nodes.values())
