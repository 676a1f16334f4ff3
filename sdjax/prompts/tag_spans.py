"""The steps at which tags are in a prompt: `[<lora:a:1>::0.6]` is there until 60 % of the steps are made."""

from collections.abc import Sequence
from typing import TypeAlias

from sdjax.checks.arguments import number
from sdjax.prompts.extra_networks import Tag
from sdjax.prompts.schedule import schedule, text_at

Span: TypeAlias = tuple[float, float]  # start and end, shares of the steps
WHOLE: Span = (0.0, 1.0)
_MARKS = 0xF0000  # private characters, which stand for tags while changes of the prompt are read


def check_span(what: str, start: float, end: float) -> None:
    """Raises ValueError unless 0 <= start < end <= 1. `what` has the span, "an adapter"."""
    start, end = (number(f"{what}'s {name}", value, 0, 1) for name, value in (("start", start), ("end", end)))
    if start >= end:
        raise ValueError(f"{what} ends after its start; got start {start:g} and end {end:g}")


def spans_in_prompt(prompt: str, tags: Sequence[Tag], steps: int) -> list[Span]:
    """Returns the span of each tag in a prompt: the steps at which `[from:to:when]` leaves it in the text.

    `steps` is the number of steps. Raises ValueError for a tag that comes and goes, or that is never there.
    """
    if "[" not in prompt:
        return [WHOLE] * len(tags)
    marks = [chr(_MARKS + k) for k in range(len(tags))]
    pieces, behind = [], 0
    for tag, mark in zip(tags, marks):
        pieces += [prompt[behind : tag.start], mark]
        behind = tag.end
    changes = schedule("".join([*pieces, prompt[behind:]]), steps)
    texts = [text_at(changes, call) for call in range(steps)]
    out = []
    for tag, mark in zip(tags, marks):
        at = [call for call, text in enumerate(texts) if mark in text]
        if not at or at[-1] - at[0] + 1 != len(at):
            when = "comes and goes" if at else "is at none of the steps"
            raise ValueError(
                f"<{tag.kind}:{tag.name}> {when}: in [...] a tag starts or ends once, as in [<lora:a:1>::0.6]"
            )
        out.append((at[0] / steps, (at[-1] + 1) / steps))
    return out
