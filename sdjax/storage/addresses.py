"""Addresses: decides whether a path is on this computer or an address such as gs://bucket/run.

Every function that takes a path asks here first. Functions that support addresses use `sdjax.storage.buckets`. All
others call `local`, whose error says what to do instead. So no folder named `gs:` is ever made.
"""

import os
import re
from collections.abc import Sequence
from typing import Any

PACKAGES = {"gs": "gcsfs", "s3": "s3fs"}  # the package for each scheme that can be read and written
COPY = {"gs": "gcloud storage cp -r FROM TO", "s3": "aws s3 cp --recursive FROM TO"}

# At least two letters: C:/ is a drive. pathlib turns two slashes into one, and drops them at the end. a::b://c is
# fsspec's chain
_ADDRESS = re.compile(r"(?i)\s*(?:([a-z][a-z0-9+.-]+):(?:/|:|\s*$)|(gs|gcs|s3|az|https?|ftp|file|memory):)")


class AddressError(ValueError):
    """An address was given where a path of this computer is needed, or an address of an unsupported kind."""


def scheme(path: object) -> str | None:
    """Returns the scheme of an address, such as "gs" or "file", in lower case. None for a path or empty text."""
    if not isinstance(path, str | bytes | os.PathLike):
        return None
    match = _ADDRESS.match(os.fsdecode(path))
    return (match[1] or match[2]).lower() if match else None


def remote(path: object, schemes: Sequence[str] = tuple(PACKAGES)) -> bool:
    """Returns whether a path is an address of a supported scheme. Raises AddressError for other schemes."""
    kind = scheme(path)
    if kind is None or not isinstance(path, str | bytes | os.PathLike):
        return False
    if kind not in schemes or not re.match(r"\w+://[^/\s]", os.fsdecode(path)):
        raise AddressError(_refusal(os.fsdecode(path), kind, schemes))
    return True


def local(path: Any) -> Any:
    """Returns a path of this computer unchanged. Raises AddressError for an address."""
    remote(path, ())
    return path


def address(path: Any) -> str:
    """Returns an address as text, with its scheme in lower case and without a slash at the end."""
    kind, _, rest = os.fsdecode(path).partition("://")
    return f"{kind.lower()}://{rest.rstrip('/')}"


def _refusal(text: str, kind: str, schemes: Sequence[str]) -> str:
    shown = _printable(text.strip())
    rest = text.strip().partition(":")[2].lstrip("/:")
    others = "".join(f", or {one}://..." for one in schemes)
    if kind in PACKAGES and kind in schemes:
        return f"{shown} is not an address: write {kind}://{rest or 'bucket/name'}, as text (pathlib drops a slash)"
    if kind in PACKAGES:
        return f"{shown} is an address, and this must be a path of this computer{others}; copy with `{COPY[kind]}`"
    if kind == "file":
        return f"{shown} is an address: give the path itself, /{rest.removeprefix('localhost/')}"
    if kind in ("http", "https", "ftp"):
        return f"{shown} is an address of the web: download it first, and give a path of this computer{others}"
    return f"{shown} is an address of an unsupported kind: give a path of this computer{others}"


def _printable(text: str) -> str:
    return text if text.isprintable() else ascii(text)[1:-1]
