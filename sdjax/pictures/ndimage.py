"""`scipy.ndimage`, imported at first use: importing it takes a third of a second, and few pictures need it."""

from typing import Any


def __getattr__(name: str) -> Any:
    from scipy import ndimage

    return getattr(ndimage, name)
