"""Reference pictures of requests, given as objects or texts."""

import dataclasses
from typing import Any, TypeAlias

from sdjax import pictures
from sdjax.checks.arguments import number, shown
from sdjax.pictures.opening import PictureSource
from sdjax.prompts.tag_spans import Span, check_span
from sdjax.tasks.controls import RESIZES
from sdjax.tasks.extra_files import opened
from sdjax.tasks.flag_texts import read_options

MODES = {  # of sd-webui-controlnet's preprocessors: whether self-attention and feature maps use the reference
    "reference_only": (True, False),
    "reference_adain": (False, True),
    "reference_adain+attn": (True, True),
}
NUMBERS = {"weight": (0, 2), "fidelity": (0, 1), "start": (0, 1), "end": (0, 1)}


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """A picture whose looks the result takes over, through self-attention in the network.

    `picture`: a path, a file's bytes, a Pillow image or uint8 [h, w, 3]. `weight`, from 0 to 2: how many layers use it;
    0: none; 1: all self-attentions, and half of the feature maps. `fidelity`, from 0 to 1: how much guidance's
    branch without the prompt stays as without the reference. 0 gives the prompt the most weight, 1 the reference.
    `mode`: "reference_only" (attention), "reference_adain" (statistics of feature maps) or "reference_adain+attn"
    (both). It works from the share `start` of the steps to the share `end`. `resize`: how it is brought to the
    picture's size: "crop", "pad" or "stretch", as for `ControlUse`.

    Raises ValueError for values out of range and unknown names.
    """

    picture: PictureSource
    weight: float = 1.0
    fidelity: float = 0.5
    mode: str = "reference_only"
    start: float = 0.0
    end: float = 1.0
    resize: str = "crop"

    def __post_init__(self) -> None:
        for name, (low, high) in NUMBERS.items():
            object.__setattr__(self, name, number(f"a reference's {name}", getattr(self, name), low, high))
        check_span("a reference", self.start, self.end)
        for name, known in ("mode", tuple(MODES)), ("resize", RESIZES):
            if getattr(self, name) not in known:
                raise ValueError(f"a reference's {name} is one of {', '.join(known)}; got {shown(getattr(self, name))}")

    @property
    def span(self) -> Span:
        """The share of the steps from and to which it works."""
        return self.start, self.end


ReferenceLike: TypeAlias = Reference | PictureSource


def read_reference(given: ReferenceLike) -> Reference:
    """Returns a reference with its picture read. `given` is a Reference, a text for one (`parse`), or a picture.

    Raises ValueError for anything else, and for a picture that cannot be read.
    """
    one = parse(given) if isinstance(given, str) else given if isinstance(given, Reference) else Reference(given)
    picture = one.picture
    try:
        return dataclasses.replace(one, picture=opened(pictures.open_picture, picture, "a reference").pixels)
    except OSError as error:
        raise ValueError(f"the reference {str(picture)!r} cannot be read: {error.strerror or error}") from None


def parse(text: str) -> Reference:
    """Returns the reference of a text: FILE[,NAME=VALUE...]. Nothing is read yet.

    Names are the fields of `Reference`. Raises ValueError for anything else.
    """
    fields = [field.name for field in dataclasses.fields(Reference)][1:]
    file, options = read_options("a reference", text, fields)
    values: dict[str, Any] = dict(options)
    for name in NUMBERS:
        if name in values:
            try:
                values[name] = float(values[name])
            except ValueError:
                raise ValueError(f"a reference's {name} is a number; got {shown(values[name])}") from None
    return Reference(file, **values)
