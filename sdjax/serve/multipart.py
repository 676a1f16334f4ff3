"""Reads forms with files (RFC 7578), strictly."""

import re
from typing import NamedTuple

from sdjax.serve.bodies import Refused

MOST_PARTS = 64
MOST_HEAD = 4096  # bytes of a part's headers
_BOUNDARY = re.compile(r'boundary=(?:"([^"]{1,70})"|([^\s;"]{1,70}))', re.IGNORECASE)
_NAME = re.compile(rb'content-disposition:\s*form-data;[^\r\n]*?[;\s]name="([^"\r\n]{1,200})"', re.IGNORECASE)
_FILE = re.compile(rb'[;\s]filename="([^"\r\n]{1,1000})"', re.IGNORECASE)


class Part(NamedTuple):
    """A field of a form. `filename` is the name that a file has where it comes from."""

    name: str
    content: bytes
    filename: str | None = None


def read_form(body: bytes, kind: str) -> list[Part]:
    """Returns the fields of a form. `kind` is the request's Content-Type. Raises Refused for anything else."""
    found = _BOUNDARY.search(kind)
    if not kind.lower().startswith("multipart/form-data") or found is None:
        raise Refused("the body is a form: multipart/form-data with a boundary", 415)
    mark = b"--" + (found[1] or found[2]).encode("latin-1", "replace")
    first, *rest = (b"\r\n" + body).split(b"\r\n" + mark)
    if not rest or first.strip(b"\r\n") or not rest[-1].startswith(b"--"):
        raise Refused("the form is cut off: its last line is missing")
    if len(rest) - 1 > MOST_PARTS:
        raise Refused(f"a form has at most {MOST_PARTS} fields; got {len(rest) - 1}")
    return [_part(one) for one in rest[:-1]]


def _part(text: bytes) -> Part:
    head, line, content = text[: MOST_HEAD + 4].partition(b"\r\n\r\n")
    named = _NAME.search(head)
    if not text.startswith(b"\r\n") or not line or named is None:
        raise Refused("a field of the form has no name")
    content = text[len(head) + 4 :]
    filed = _FILE.search(head)
    return Part(_text(named), content, None if filed is None else _text(filed))


def _text(found: re.Match[bytes]) -> str:
    return found[1].decode("utf-8", "replace")
