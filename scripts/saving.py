"""What is done to pictures just before they are written."""

import sys
from typing import Any


def check_watermark(text: str | None) -> None:
    """Raises ValueError for a watermark that cannot be written. To be called before work begins."""
    if text is not None and not text:
        raise ValueError("--watermark is a text of at least one character; got an empty one")


def mark(pixels: Any, text: str | None) -> Any:
    """Returns the picture, uint8 [h, w, 3], with the watermark in it; as it is where there is none, or no room for it.

    What has no room is said on standard error.
    """
    if text is None:
        return pixels
    from sdjax import watermark

    try:
        watermark.check_size(*pixels.shape[:2])
    except ValueError as error:
        print(f"note: no watermark was written: {error}", file=sys.stderr)
        return pixels
    return watermark.embed(pixels, text)
