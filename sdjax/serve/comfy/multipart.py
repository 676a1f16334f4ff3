"""Forms with files (multipart/form-data), as the editor sends pictures. Bounded, and in memory alone."""

import re
from typing import NamedTuple

MOST_PARTS = 20
LONGEST_HEAD = 4096


class Part(NamedTuple):
    """One part of a form: the file's name if it is one, and its content."""

    filename: str | None
    content: bytes


def read_form(content_type: str, body: bytes) -> dict[str, Part]:
    """Returns the parts of a form by name. Raises ValueError for anything else."""
    found = re.search(r'boundary="?([0-9A-Za-z\'()+_,./:=? -]{1,70})"?', content_type)
    if not content_type.lower().startswith("multipart/form-data") or found is None:
        raise ValueError("a picture is uploaded as multipart/form-data")
    mark = b"--" + found[1].strip().encode()
    if not body.startswith(mark):
        raise ValueError("the form does not begin with its boundary")
    pieces = body.split(b"\r\n" + mark, MOST_PARTS + 1)
    pieces[0] = pieces[0][len(mark) :]
    if len(pieces) > MOST_PARTS + 1 or not pieces[-1].startswith(b"--"):
        raise ValueError(f"the form has no end, or more than {MOST_PARTS} parts")
    out: dict[str, Part] = {}
    for piece in pieces[:-1]:
        head, gap, content = piece.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        if not gap or len(head) > LONGEST_HEAD:
            raise ValueError("a part of the form has no head")
        text = head.decode("utf-8", "replace")
        name = re.search(r'(?:^|[;\s])name="([^"\r\n]*)"', text)
        file = re.search(r'filename="([^"\r\n]*)"', text)
        if name is None:
            raise ValueError("a part of the form has no name")
        out[name[1]] = Part(None if file is None else file[1], content)
    return out
