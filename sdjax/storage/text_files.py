"""Reads text files that users write: prompts, captions, tables."""

import codecs
import re

_MARKS = (  # UTF-32's little-endian mark begins with UTF-16's
    (codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32-le"), (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"),
)  # fmt: skip
_LINE_END = re.compile("\r\n|\r|\n")


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
