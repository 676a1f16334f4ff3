"""Workflow files: JSON in API form or UI form, or a picture that a workflow is embedded in."""

import json
from typing import Any

from sdjax.pictures.metadata.texts import read_texts
from sdjax.pictures.samples import PictureError
from sdjax.serve.comfy.graph import MOST_BYTES, Graph, GraphError, read_api_form
from sdjax.serve.comfy.ui_form import is_ui_form, read_ui_form

DEEPEST = 60  # lists and objects in each other


def read_workflow(data: bytes) -> Graph:
    """Returns the graph of a workflow file: JSON, or a PNG, JPEG or WebP file with one in its texts.

    A picture has the graph that made it in API form ("prompt") and in UI form ("workflow"); the first one is taken.
    Raises GraphError for anything else.
    """
    if data[:1] in (b"{", b"[", b"\xef") or data[:1].isspace():
        return read_json(_decoded(data))
    try:
        texts = read_texts(data)
    except PictureError as error:
        raise GraphError(f"a workflow is a JSON file, or a picture with one in it: {error}") from None
    for keyword in ("prompt", "workflow"):
        if keyword in texts:
            return read_json(_decoded(texts[keyword].encode()))
    raise GraphError("the picture has no workflow in it: ComfyUI writes one into the pictures that it saves")


def read_json(value: Any) -> Graph:
    """Returns the graph of a decoded file: API form, the body of POST /prompt, or UI form. Raises GraphError."""
    if is_ui_form(value):
        return read_ui_form(value)
    if isinstance(value, dict) and isinstance(value.get("prompt"), dict) and "class_type" not in value["prompt"]:
        value = value["prompt"]
    return read_api_form(value)


def _decoded(data: bytes) -> Any:
    if len(data) > MOST_BYTES:
        raise GraphError(f"a workflow has at most {MOST_BYTES} bytes; got {len(data)}")
    try:
        text = data.decode("utf-8-sig")
        if _depth(text) > DEEPEST:
            raise GraphError(f"a workflow has at most {DEEPEST} lists and objects in each other")
        return json.loads(text, parse_constant=_not_a_number)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise GraphError(f"a workflow is JSON: {error}") from None
    except ValueError as error:
        if isinstance(error, GraphError):
            raise
        raise GraphError("a number in the workflow has too many digits") from None


def _depth(text: str) -> int:
    """Returns how many brackets are open at once, outside of texts."""
    depth = deepest = 0
    quoted = escaped = False
    for one in text:
        if quoted:
            quoted = escaped or one != '"'
            escaped = one == "\\" and not escaped
        elif one == '"':
            quoted = True
        elif one in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif one in "]}":
            depth -= 1
    return deepest


def _not_a_number(word: str) -> float:
    # ComfyUI's editor writes NaN into `is_changed`; a node's own inputs are checked later
    return float(word.replace("Infinity", "inf"))
