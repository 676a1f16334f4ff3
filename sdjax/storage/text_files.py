"""Reads text files that users write: prompts, captions, tables."""

import codecs
import os
import re

_MARKS = (  # UTF-32's little-endian mark begins with UTF-16's
    (codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32-le"), (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"),
)  # fmt: skip
_LINE_END = re.compile("\r\n|\r|\n")


def read(path: str | os.PathLike[str], name: str, most: int) -> str:
    """Returns the text of a file (`decode`) of at most `most` bytes. A device without end is read no further.

    Raises ValueError, in one sentence, if it cannot be read, is longer, or is no text.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(most + 1)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise ValueError(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(data) > most:
        raise ValueError(f"{name} has too many bytes; the most is {most}")
    return decode(data, name)


def decode(data: bytes, name: str) -> str:
    """Returns the text of a file's bytes: UTF-8, or the encoding of its byte order mark.

    Raises ValueError for anything else. `name` is the file's name in the message.
    """
    mark, encoding = next(((mark, code) for mark, code in _MARKS if data.startswith(mark)), (b"", "utf-8"))
    try:
        text = data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        number = len(lines(data[: len(mark) + error.start].decode(encoding, "replace")))
        raise ValueError(f"line {number} of {name} is not UTF-8 text ({error.reason}); save it as UTF-8") from None
    if "\0" in text:
        raise ValueError(
            f"{name} is not UTF-8 text (it has zero bytes, like UTF-16 and binary files); save it as UTF-8"
        )
    return text


def lines(text: str) -> list[str]:
    r"""Returns the lines of a text, without their line ends \n, \r\n or \r.

    str.splitlines also splits at \v, \f, \x1c to \x1e, \x85, U+2028 and U+2029, which may be part of a prompt.
    """
    return _LINE_END.split(text)
