"""What tools write about a picture into its file: reads the texts, and turns each tool's into named settings.

Nothing from a file is trusted: sizes are limited, nothing is executed, and no name of a file is ever opened.
"""

from collections.abc import Callable

from sdjax.pictures.metadata import comfyui, infotext, invokeai, sdjax_text
from sdjax.pictures.metadata.found import Found
from sdjax.pictures.metadata.texts import read_texts
from sdjax.pictures.samples import PictureError

__all__ = ["Found", "read_metadata"]

# Each tool's text chunk, and the function that reads it. The first one that a picture has is used
READERS: tuple[tuple[str, Callable[[str], Found]], ...] = (
    ("sdjax", sdjax_text.read),
    ("invokeai_metadata", invokeai.read),
    ("sd-metadata", invokeai.read_old),
    ("prompt", comfyui.read),
    ("parameters", infotext.read),
    ("UserComment", infotext.read),
)


def read_metadata(data: bytes) -> Found:
    """Returns what a picture file says about how it was made. `data` are the bytes of a PNG, JPEG or WebP file.

    Raises PictureError, saying what is wrong, if the file is damaged, or none of its texts is a known tool's.
    """
    texts = read_texts(data)
    wrong = []
    for keyword, reader in READERS:
        if keyword in texts:
            try:
                return reader(texts[keyword])
            except ValueError as error:
                wrong.append(f"its text {keyword!r} is not understood: {error}")
    if wrong:
        raise PictureError("; ".join(wrong))
    there = f" (it has the texts {', '.join(map(repr, texts))})" if texts else ""
    raise PictureError(f"the file does not say how it was made{there}: it has no text of a tool that sdjax knows")
