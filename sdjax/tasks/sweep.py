"""Sweeps: pictures over all combinations of some settings, with a labelled grid and a table."""

import csv
import dataclasses
import io
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import numpy as np

from sdjax.checks.arguments import is_sequence, shown
from sdjax.pictures.plot import plot
from sdjax.pipeline.model import Pipeline
from sdjax.spelling import meant
from sdjax.tasks import settings
from sdjax.tasks.computing import ComputingOptions
from sdjax.tasks.generate import generate
from sdjax.tasks.request import Request

REPLACE = "prompt_replace"  # not a field: its values replace the first of them in the prompt
MAX_AXES = 3
MAX_CELLS = 10_000
_RANGE = re.compile(  # "1-5", "1-5 (+2)", "0-1 [5]"
    r"\s*(-?[\d.]+)\s*-\s*(-?[\d.]+)\s*(?:\(\s*([+-]?[\d.]+)\s*\)|\[\s*(\d+)\s*\])?\s*"
)


@dataclasses.dataclass(frozen=True)
class Axis:
    """One setting and its values. `name` is a field of `Request` or `prompt_replace`, `label` the name that is shown.

    The values of `prompt_replace` are texts: each replaces the first one in the prompt.
    """

    name: str
    values: tuple[Any, ...]
    label: str = ""

    def labels(self) -> list[str]:
        """Returns a text for each value: the text itself, or NAME: VALUE for a number."""
        named = f"{self.label or self.name}: "
        return [value if isinstance(value, str) else f"{named}{value}" for value in self.values]

    def set(self, base: Mapping[str, Any], value: Any) -> dict[str, Any]:
        """Returns the settings `base` with this value. Raises ValueError if there is nothing to replace."""
        if self.name != REPLACE:
            return {**base, self.name: value}
        prompt = base.get("prompt", "")
        if self.values[0] not in prompt:
            raise ValueError(f"{REPLACE}: the prompt {shown(prompt)} does not contain {self.values[0]!r}")
        return {**base, "prompt": prompt.replace(self.values[0], value)}


@dataclasses.dataclass(frozen=True, eq=False)
class Sweep:
    """Pictures over all combinations of the axes' values; the first axis changes fastest."""

    axes: tuple[Axis, ...]
    requests: list[Request]
    pictures: list[np.ndarray]

    def grid(self) -> np.ndarray:
        """Returns the labelled grid, uint8 [h, w, 3]: the first axis from left to right, the second from top down.

        The third one makes sheets, one below the other.
        """
        return plot(self.pictures, [axis.labels() for axis in self.axes])

    def table(self) -> str:
        """Returns a CSV table: a line for each picture with its values and seed."""
        lines = [[*values, request.seed] for values, request in zip(combinations(self.axes), self.requests)]
        return to_csv([*(axis.label or axis.name for axis in self.axes), "seed"], lines)


def sweep(
    pipe: Pipeline, request: Request, axes: Mapping[str, Sequence[Any]], **how: Unpack[ComputingOptions]
) -> Sweep:
    """Returns the pictures of a request for all combinations of some of its settings, made as `sdjax.generate` does.

    `axes` has up to three fields of `Request` with their values, such as {"guidance_scale": [1.5, 3, 7.5], "sampler":
    ["ddim", "dpmpp_2m"]}. Seed and other settings are the request's. `how` are the fields of
    `sdjax.tasks.computing.Computing`; `at_once` limits how many pictures are computed at once.

    Raises ValueError for an unknown field, and whatever `generate` raises.
    """
    fields = [field.name for field in dataclasses.fields(Request)]
    chosen = []
    for name, values in axes.items():
        if name not in (*fields, REPLACE):
            raise ValueError(f"unknown setting {name!r}{meant(name, fields)}; the known ones are {', '.join(fields)}")
        if not is_sequence(values) or not len(values):
            raise ValueError(f"{name} needs a sequence of at least one value; got {shown(values)}")
        chosen.append(Axis(name, tuple(values)))
    base = {name: getattr(request, name) for name in fields}
    requests = [Request(**cell) for cell in cells(chosen, base)]
    return Sweep(tuple(chosen), requests, list(generate(pipe, requests, **how)))


def cells(axes: Sequence[Axis], base: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the settings of all combinations of the axes' values; the first axis changes fastest.

    Raises ValueError as `check_axes` and `Axis.set` do.
    """
    check_axes(axes)
    made = []
    for values in combinations(axes):
        cell = dict(base)
        for axis, value in zip(axes, values):
            cell = axis.set(cell, value)
        made.append(cell)
    return made


def check_axes(axes: Sequence[Axis]) -> None:
    """Raises ValueError for no axis or more than three, a setting with two axes, and more than 10,000 combinations."""
    names = [axis.name for axis in axes]
    if not 1 <= len(axes) <= MAX_AXES:
        raise ValueError(f"a sweep has one to three axes; got {len(axes)}")
    if len(set(names)) < len(names):
        raise ValueError(f"a sweep has one axis for each setting; got {', '.join(names)}")
    count = int(np.prod([len(axis.values) for axis in axes]))
    if count > MAX_CELLS:
        raise ValueError(f"a sweep has at most {MAX_CELLS} combinations; got {count}")


def combinations(axes: Sequence[Axis]) -> list[tuple[Any, ...]]:
    """Returns all combinations of the axes' values, in the order of the axes; the first axis changes fastest."""
    return [values[::-1] for values in itertools.product(*(axis.values for axis in reversed(axes)))]


def read_axis(text: str, own: Sequence[str] = settings.SIZE, *, what: str = "sweep") -> Axis:
    """Returns the axis of a text NAME=VALUE,VALUE,... Values with a comma are put in double quotes.

    Whole numbers may be given as ranges: 1-5, 1-9(+2), and any numbers as 0-1[5], five of them. Names are those of
    `settings.read`; `own` are the task's. Raises ValueError, saying what is wrong; `what` it is called there.
    """
    spelled, equals, values = text.partition("=")
    spelled = spelled.strip()
    if not equals or not spelled:
        form = "NAME=VALUE,VALUE,..., such as scale=1.5,3,7.5" if what == "sweep" else "NAME=VALUE, such as scale=3"
        raise ValueError(f"a {what} is {form}; got {shown(text)}")
    given = next(csv.reader([values], skipinitialspace=True), [])
    if not given or not all(one.strip() for one in given):
        raise ValueError(f"the {what} of {spelled} needs at least one value, and no empty one; got {shown(values)}")
    if spelled.replace("-", "_") == REPLACE:
        return Axis(REPLACE, tuple(given), spelled)
    name = settings.name_of(spelled, own)
    parts = [given] if settings.is_text(name) else [_expanded(one) for one in given]
    texts = [one for part in parts for one in part]
    read = tuple(settings.from_text(name, one) for one in texts)
    for value in read:
        try:
            settings.check({name: value})
        except ValueError as error:
            raise ValueError(f"the {what} of {spelled}: {error}") from None
    return Axis(name, read, spelled)


def _expanded(text: str) -> list[str]:
    """Returns the numbers of a range as texts; the text itself if it is none."""
    match = _RANGE.fullmatch(text)
    if match is None:
        return [text]
    try:
        low, high = float(match[1]), float(match[2])
        step = float(match[3] or 1)
    except ValueError:
        return [text]
    if match[4] is not None:
        count = int(match[4])
        step = (high - low) / max(count - 1, 1)
    else:
        count = int((high - low) / step + 1e-9) + 1 if step * (high - low) >= 0 and step else 0
    if not 1 <= count <= MAX_CELLS:
        raise ValueError(f"the range {text.strip()} has no values, or more than {MAX_CELLS}")
    values = [low + i * step for i in range(count)]
    return [str(int(value)) if value.is_integer() else f"{value:.10g}" for value in values]


def to_csv(names: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    """Returns a CSV table (RFC 4180) with a head."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(names)
    writer.writerows(lines)
    return out.getvalue()
