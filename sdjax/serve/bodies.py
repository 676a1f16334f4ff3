"""Reads what requests send: JSON and pictures, within `Limits`. Nothing from outside chooses a path or an address."""

import asyncio
import base64
import binascii
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from anyio import to_thread
from starlette.requests import Request

from sdjax.checks.arguments import shown
from sdjax.pictures import open_mask, open_picture
from sdjax.serve.server import Limits, Server

UPLOAD = "upload:"


class Refused(ValueError):
    """A request that cannot be answered. `status` is the HTTP status."""

    def __init__(self, sentence: str, status: int = 400) -> None:
        super().__init__(sentence)
        self.status = status


async def read_body(request: Request, most: int, seconds: float) -> bytes:
    """Returns the body of a request. Raises Refused if it has more than `most` bytes, or comes too slowly."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and (len(announced) > 15 or int(announced) > most):
        raise Refused(f"the body has at most {most} bytes; this one has {announced[:15]}", 413)
    parts, size = [], 0
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                size += len(part)
                if size > most:
                    raise Refused(f"the body has at most {most} bytes; this one has more", 413)
                parts.append(part)
    except TimeoutError:
        raise Refused(f"the body did not come within {seconds:g} seconds", 408) from None
    return b"".join(parts)


async def read_json(server: Server, request: Request) -> dict[str, Any]:
    """Returns the JSON object of a request; an empty body is an empty object. Raises Refused for anything else."""
    limits = server.settings.limits
    body = await read_body(request, limits.json, limits.body_seconds)
    return {} if not body.strip() else await to_thread.run_sync(parse_object, body, limits)


def parse_object(body: bytes, limits: Limits) -> dict[str, Any]:
    """Returns the JSON object of these bytes. Raises Refused for anything else, and for more than the limits allow."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        raise Refused("the body is no JSON: it is not UTF-8") from None
    _check_nesting(text, limits)
    try:
        given = json.loads(text, parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        raise Refused(f"the body is no JSON ({error.msg} at character {error.pos + 1})") from None
    except RecursionError:
        raise Refused(f"the JSON is nested too deeply: at most {limits.nesting} levels") from None
    except ValueError as error:
        if isinstance(error, Refused):
            raise
        raise Refused("a number in the JSON has thousands of digits") from None
    if not isinstance(given, dict):
        raise Refused(f"the body is a JSON object; got {shown(given)}")
    return given


def _finite(text: str) -> float:
    if math.isinf(number := float(text)):
        raise Refused(f"numbers are finite; got {text[:20]}")
    return number


def _check_nesting(text: str, limits: Limits) -> None:
    """Raises Refused before a parser builds anything for too deep or too many values."""
    if text.count(",") + text.count("[") + text.count("{") > limits.values:
        # commas inside texts count too: a prompt does not have so many
        raise Refused(f"the JSON has at most {limits.values} values")
    depth, in_text, escaped = 0, False, False
    if text.count("[") + text.count("{") <= limits.nesting:
        return
    for letter in text:
        if in_text:
            escaped, in_text = (letter == "\\" and not escaped), (letter != '"' or escaped)
        elif letter == '"':
            in_text = True
        elif letter in "[{":
            depth += 1
            if depth > limits.nesting:
                raise Refused(f"the JSON is nested too deeply: at most {limits.nesting} levels")
        elif letter in "]}":
            depth -= 1


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise Refused(f"{shown(twice)} is given twice: give it once")
    return found


def _no_constant(name: str) -> Any:
    raise Refused(f"numbers are finite; got {name}")


def file_from_text(server: Server, text: Any, what: str) -> bytes:
    """Returns the bytes that a text stands for: base64, with or without "data:...;base64,", or "upload:ID".

    Raises Refused for anything else, such as an address, which is never fetched.
    """
    if not isinstance(text, str) or not text:
        raise Refused(f"{what} is a picture as base64, or upload:ID; got {shown(text)}")
    if text.startswith(UPLOAD):
        return server.uploads.get(text[len(UPLOAD) :])
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise Refused(f"{what} is no base64: data: is followed by ;base64,")
    if text[:8].lower().startswith(("http:", "https:", "file:", "ftp:")):
        raise Refused(f"{what} is an address: the server fetches nothing; send the picture itself as base64")
    if len(text) * 3 // 4 > server.settings.limits.picture:
        raise Refused(f"{what} has at most {server.settings.limits.picture} bytes", 413)
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise Refused(f"{what} is no base64") from None


def open_input(content: bytes, name: str) -> np.ndarray:
    """Returns an input of a work: uint8 [h, w] if its name begins with "mask", else [h, w, 3].

    Raises PictureError, a ValueError, for what is no picture or too large.
    """
    return open_mask(content).pixels if name.startswith("mask") else open_picture(content).pixels


def open_inputs(server: Server, given: Any) -> dict[str, np.ndarray]:
    """Returns the inputs of a work, opened. `given` are texts by name (`file_from_text`)."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise Refused(f"inputs are pictures by name; got {shown(given)}")
    if len(given) > server.settings.limits.pictures:
        raise Refused(f"at most {server.settings.limits.pictures} pictures; got {len(given)}")
    return {
        name: open_input(file_from_text(server, text, f"the input {shown(name)}"), name) for name, text in given.items()
    }
