"""How PEFT's description scales a layer's change: adapter_config.json of a folder, or the same in a file's header."""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

from sdjax.adapters.families import Rotation
from sdjax.convert.adapters.info import parsed
from sdjax.convert.adapters.kinds import Scaling
from sdjax.convert.adapters.write_names import FOLDERS, HEADER
from sdjax.convert.errors import CheckpointError, shown

FILE = "adapter_config.json"
MOST_TERMS = 50  # of a series


class PeftSettings:
    """The description: of one network (a folder), or with the networks' names before its keys (a header)."""

    def __init__(self, alone: Mapping[str, Any] | None, header: Mapping[str, Any]) -> None:
        self._alone, self._header = alone, header

    def scaling(self, part: str, layer: str) -> Scaling | None:
        """Returns the scaling of a layer of a network; None if nothing describes it. Raises CheckpointError."""
        alpha = self._get(part, "lora_alpha")
        if alpha is None:
            return None
        for pattern, own in self._table(part, "alpha_pattern").items():
            if _names(pattern, layer):
                alpha = own
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not abs(alpha) < 1e6:
            raise CheckpointError(f"lora_alpha is a number; got {shown(alpha)}")
        return Scaling(float(alpha), bool(self._get(part, "use_rslora")))

    def rotation(self, part: str) -> Rotation:
        """Returns how a network's orthogonal changes are made; PEFT's defaults where nothing says it."""
        terms, eps = self._get(part, "num_cayley_neumann_terms"), self._get(part, "eps")
        terms = Rotation.terms if terms is None else terms
        if type(terms) is not int or not 1 <= terms <= MOST_TERMS:
            raise CheckpointError(f"num_cayley_neumann_terms is a whole number to {MOST_TERMS}; got {shown(terms)}")
        if self._get(part, "use_cayley_neumann") is False:
            terms = None
        if not self._get(part, "coft"):
            return Rotation(terms)
        eps = 6e-5 if eps is None else eps
        if type(eps) not in (int, float) or not 0 <= eps < 1e6:
            raise CheckpointError(f"eps is a number from 0 up; got {shown(eps)}")
        return Rotation(terms, float(eps))

    def _table(self, part: str, key: str) -> Mapping[str, Any]:
        return _object(self._get(part, key) or {}, key)

    def _get(self, part: str, key: str) -> Any:
        if self._alone is not None:
            return self._alone.get(key)
        return self._header.get(f"{FOLDERS[part]}.{key}")


def header_of(metadata: Mapping[str, str], path: pathlib.Path | None = None) -> Mapping[str, Any]:
    """Returns the description in a safetensors header, empty if there is none. Raises CheckpointError for another."""
    text = metadata.get(HEADER)
    return {} if text is None else _object(parsed(text), f"{HEADER} in its header", path)


def _object(value: Any, what: str, path: pathlib.Path | None = None) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise CheckpointError(f"{what} is no JSON object of names and values", path)
    return value


def _names(pattern: str, layer: str) -> bool:
    """Returns whether a key of a pattern table names a layer: it is the end of its name, from a dot on.

    PEFT reads keys as regular expressions. Here only "^" at the start and "$" at the end have their meaning: a file's
    expressions could take for ever.
    """
    text = pattern.removesuffix("$").replace("\\.", ".")
    if text.startswith("^"):
        return layer == text[1:]
    if re.search(r"[*+?()|\[\]{}\\]", text):
        raise CheckpointError(f"the pattern {shown(pattern)} is a regular expression; sdjax reads ends of names only")
    return layer == text or layer.endswith(f".{text}")
