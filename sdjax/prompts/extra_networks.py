"""Tags of extra networks in prompts: `<lora:name:0.8>`, `<hypernet:name:0.5>`, as AUTOMATIC1111's web UI reads them.

A tag is `<kind:name:argument:...>`. An argument with `=` has a name, as in `<lora:name:1:lbw=ALL>`. This file only
reads tags; what they mean is decided where they are used.
"""

import math
import re
from collections.abc import Collection
from typing import NamedTuple

from sdjax.checks.arguments import shown

KINDS = ("lora", "lyco", "hypernet")

_TAG = re.compile(r"<(\w+):([^<>]+)>")


class Tag(NamedTuple):
    """A tag in a text. `text[start:end]` is the tag as typed.

    `args` are the arguments after the name without `=`, in order; `options` are those with one.
    """

    kind: str
    name: str
    args: tuple[str, ...]
    options: dict[str, str]
    start: int
    end: int

    def number(self, at: int, default: float) -> float:
        """Returns argument `at` as a finite number; `default` if the tag has no such argument or an empty one.

        Raises ValueError if it is not a finite number.
        """
        text = self.args[at].strip() if at < len(self.args) else ""
        if not text:
            return default
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise ValueError(f"<{self.kind}:{self.name}> in the prompt has a number as weight; got {shown(text)}")
        return value


class Tagged(NamedTuple):
    """The tags of a text in order, and the text without them."""

    tags: tuple[Tag, ...]
    text: str


def read_tags(text: str, kinds: Collection[str] = KINDS) -> Tagged:
    """Returns the tags of some kinds in a text, and the text without them. Tags of other kinds stay in the text.

    Spaces around a tag stay, as in A1111. Any text is accepted; a tag without a name is left as text.
    """
    tags: list[Tag] = []
    kept: list[str] = []
    behind = 0
    for match in _TAG.finditer(text):
        kind, (name, *rest) = match[1], match[2].split(":")
        if kind not in kinds or not name.strip():
            continue
        named = [one.split("=", 1) for one in rest if "=" in one]
        args = tuple(one for one in rest if "=" not in one)
        options = {key.strip(): value for key, value in named}
        tags.append(Tag(kind, name.strip(), args, options, *match.span()))
        kept.append(text[behind : match.start()])
        behind = match.end()
    return Tagged(tuple(tags), "".join([*kept, text[behind:]]))
