"""Addresses: what a path is, one of this computer, or gs://bucket/run or the like.

Everything that takes a path asks here first. What can use an address reaches it by `sdjax.storage.buckets`; what cannot
calls `local`, which says what to do instead, so that no folder named `gs:` is ever made.
"""

import os
import re
from collections.abc import Sequence
from typing import Any

PACKAGES = {"gs": "gcsfs", "s3": "s3fs"}  # what reaches them, by the schemes that can be read and written
COPY = {"gs": "gcloud storage cp -r FROM TO", "s3": "aws s3 cp --recursive FROM TO"}

# Two letters at least: C:/ is a drive. One slash is what pathlib leaves of two, and none where nothing follows; a::b://c
# is fsspec's chain
_ADDRESS = re.compile(r"(?i)\s*(?:([a-z][a-z0-9+.-]+):(?:/|:|\s*$)|(gs|gcs|s3|az|https?|ftp|file|memory):)")


class AddressError(ValueError):
    """An address where a path of this computer is needed, or one of a kind that cannot be reached."""


def scheme(path: object) -> str | None:
    """Returns the scheme of an address, such as "gs" or "file", in small letters; None for a path, and for no text."""
    if not isinstance(path, str | bytes | os.PathLike):
        return None
    match = _ADDRESS.match(os.fsdecode(path))
    return (match[1] or match[2]).lower() if match else None


def remote(path: object, schemes: Sequence[str] = tuple(PACKAGES)) -> bool:
    """Returns whether a path is an address that can be reached. Raises AddressError for one of another kind."""
    kind = scheme(path)
    if kind is None or not isinstance(path, str | bytes | os.PathLike):
        return False
    if kind not in schemes or not re.match(r"\w+://[^/\s]", os.fsdecode(path)):
        raise AddressError(_refusal(os.fsdecode(path), kind, schemes))
    return True


def local(path: Any) -> Any:
    """Returns a path of this computer as it is. Raises AddressError for an address."""
    remote(path, ())
    return path


def address(path: Any) -> str:
    """Returns an address as text, with its scheme in small letters and without a slash at its end."""
    kind, _, rest = os.fsdecode(path).partition("://")
    return f"{kind.lower()}://{rest.rstrip('/')}"


def _refusal(text: str, kind: str, schemes: Sequence[str]) -> str:
    shown = _printable(text.strip())
    rest = text.strip().partition(":")[2].lstrip("/:")
    others = "".join(f", or {one}://..." for one in schemes)
    if kind in PACKAGES and kind in schemes:
        return f"{shown} is no address: it is written {kind}://{rest or 'bucket/name'}, as text (pathlib drops a slash)"
    if kind in PACKAGES:
        return f"{shown} is an address, and this must be a path of this computer{others}; copy with `{COPY[kind]}`"
    if kind == "file":
        return f"{shown} is an address: give the path itself, /{rest.removeprefix('localhost/')}"
    if kind in ("http", "https", "ftp"):
        return f"{shown} is an address of the web: fetch it first, and give the path of this computer{others}"
    return f"{shown} is an address of a kind that is not read here: give a path of this computer{others}"


def _printable(text: str) -> str:
    return text if text.isprintable() else ascii(text)[1:-1]
