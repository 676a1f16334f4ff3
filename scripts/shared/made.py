"""A picture that a command made."""

from pathlib import Path
from typing import Any, NamedTuple


class Made(NamedTuple):
    """A picture, uint8 [h, w, 3], its settings, and the file it was written to, if any."""

    picture: Any
    description: dict[str, Any]
    path: Path | None
