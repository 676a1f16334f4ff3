"""Prompts of requests: styles and random choices first, then what each branch of guidance gets at each network call."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Int

from sdjax.prompts.language import Language
from sdjax.prompts.schedule import text_at
from sdjax.prompts.styles import NAME, Style, apply_styles, choose_styles
from sdjax.prompts.wildcards import Wildcards, expand

NEGATIVE = 2**64  # added to the seed of a negative prompt's choices: seeds are below


class Prompted(Protocol):
    """A request, or its fields about prompts."""

    @property
    def prompt(self) -> str: ...
    @property
    def negative_prompt(self) -> str | None: ...
    @property
    def seed(self) -> int | None: ...
    @property
    def prompt_syntax(self) -> str | None: ...
    @property
    def emphasis(self) -> str | None: ...
    @property
    def comma_backtrack(self) -> int | None: ...
    @property
    def old_prompt_editing(self) -> bool: ...
    @property
    def styles(self) -> tuple[str, ...]: ...
    @property
    def styles_file(self) -> str | None: ...
    @property
    def wildcards(self) -> str | None: ...
    @property
    def wildcard_seed(self) -> int | None: ...


class Typed(NamedTuple):
    """The fields of `Request` that decide its final texts."""

    prompt: str
    negative_prompt: str | None = ""
    seed: int | None = 0
    prompt_syntax: str | None = None
    emphasis: str | None = None
    comma_backtrack: int | None = None
    old_prompt_editing: bool = False
    styles: tuple[str, ...] = ()
    styles_file: str | None = None
    wildcards: str | None = None
    wildcard_seed: int | None = None


class Plan(NamedTuple):
    """What a picture's prompts say at each call of the network.

    `prompts[j][s]` is the text of the j-th prompt that AND joins at stage s, `weights[j]` its weight, and
    `negative[s]` the negative prompt's. `stage[i]` is the stage of call i.
    """

    weights: tuple[float, ...]
    prompts: tuple[tuple[str, ...], ...]
    negative: tuple[str, ...]
    stage: Int[np.ndarray, "n"]

    @property
    def stages(self) -> int:
        """The number of stages."""
        return len(self.negative)


def final_texts(requests: Iterable[Prompted]) -> list[tuple[str, str]]:
    """Returns prompt and negative prompt of each request, with its styles added and its random choices made.

    Raises ValueError for styles and wildcards that cannot be read.
    """
    folders: dict[str, Wildcards] = {}
    known: dict[tuple[tuple[str, ...], str], list[Style]] = {}
    out = []
    for request in requests:
        texts = request.prompt, request.negative_prompt or ""
        if request.styles:
            named = (request.styles, request.styles_file or NAME)
            if named not in known:
                known[named] = choose_styles(*named)
            texts = apply_styles(*texts, known[named])
        if request.prompt_syntax != "plain":
            folder = request.wildcards
            if folder is not None and folder not in folders:
                folders[folder] = Wildcards(folder)
            files = None if folder is None else folders[folder]
            seed = (request.seed or 0) if request.wildcard_seed is None else request.wildcard_seed
            texts = expand(texts[0], seed, files), expand(texts[1], seed + NEGATIVE, files)
        out.append(texts)
    return out


def make_plan(
    language: Language, prompt: str, negative: str, *, steps: int, calls: int, after: int | None = None
) -> Plan:
    """Returns the plan of a picture's prompts.

    `steps` is the number of steps that `[from:to:when]` counts, which is the number of network calls for samplers of
    second order, as in A1111. `calls` is the number of calls that are made. `after`: the steps of an earlier pass.
    """
    joined = language.joined(prompt)
    schedules = [language.schedule(text, steps, after=after) for text in (*(text for text, _ in joined), negative)]
    if all(len(one) == 1 for one in schedules):
        at_call = [tuple(one[0][1] for one in schedules)] * max(calls, 1)
    else:
        at_call = [tuple(text_at(one, call) for one in schedules) for call in range(max(calls, 1))]
    different = {texts: stage for stage, texts in enumerate(dict.fromkeys(at_call))}
    stage = np.array([different[texts] for texts in at_call], np.int32)
    *prompts, negatives = zip(*different, strict=True)
    return Plan(tuple(weight for _, weight in joined), tuple(prompts), negatives, stage)


def padded_stages(plans: Sequence[Plan]) -> int:
    """Returns the number of stages for a batch: the largest, as a power of two, so that few programs are compiled."""
    return 1 << (max(plan.stages for plan in plans) - 1).bit_length()


def language_of(request: Prompted) -> Language:
    """Returns how the prompts of a request are read. Raises ValueError for settings that contradict each other."""
    syntax = "weights" if request.prompt_syntax is None else request.prompt_syntax
    return Language(syntax, request.emphasis, request.comma_backtrack, request.old_prompt_editing)
