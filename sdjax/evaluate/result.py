"""The result of an evaluation: settings with their measures, as JSON and as a CSV table."""

import csv
import dataclasses
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sdjax.checks.arguments import shown
from sdjax.errors import printable
from sdjax.evaluate.bootstrap import Bounds, Interval, interval, share_interval
from sdjax.storage import text_files

FORMAT = "sdjax evaluation 1"
MAX_BYTES = 256 * 2**20
FIELDS = ("title", "lower_is_better", "of", "bounds", "trials", "samples")


@dataclasses.dataclass(frozen=True)
class Measured:
    """The value of a measure, None if it is not a number, and its values on the bootstrap's resamples.

    `of` says what it is measured with: the network's identity and the reference's. Only values with the same one are
    compared. `bounds` are the least and the largest possible value. `trials` is how many pictures a share is of, if
    each is right or wrong by itself.
    """

    value: float | None
    samples: tuple[float, ...]
    title: str
    lower_is_better: bool
    of: str
    bounds: Bounds = (None, None)
    trials: int | None = None

    @property
    def interval(self) -> Interval | None:
        """The confidence interval; None without resamples."""
        if self.value is None or len(self.samples) < 2:
            return None
        if self.trials is not None:
            return share_interval(self.value, self.trials)
        return interval(self.value, self.samples, bounds=self.bounds)


@dataclasses.dataclass(frozen=True)
class Judged:
    """The measures of one setting's pictures. `swept` are the values of the sweep by their names."""

    name: str
    swept: Mapping[str, Any]
    settings: Mapping[str, Any]
    measures: Mapping[str, Measured]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The measures of a model. `model` is its identity; `captions` the digest of the `count` captions and seeds."""

    model: Mapping[str, Any]
    captions: str
    count: int
    settings: tuple[Judged, ...]

    def to_json(self) -> str:
        """Returns the evaluation as a JSON file's text."""
        described = []
        for one in self.settings:
            measures = {}
            for name, measured in one.measures.items():
                ends = measured.interval
                measures[name] = {
                    "value": measured.value,
                    "low": None if ends is None else ends.low,
                    "high": None if ends is None else ends.high,
                    **{field: getattr(measured, field) for field in FIELDS},
                }
            described.append({**dataclasses.asdict(one), "measures": measures})
        whole = {**dataclasses.asdict(self), "settings": described}
        return json.dumps({"format": FORMAT, **whole}, indent=1, allow_nan=False) + "\n"

    def to_csv(self) -> str:
        """Returns a table with a line for each setting: the swept values, then each measure and its interval's ends."""
        swept = list(dict.fromkeys(name for one in self.settings for name in one.swept))
        names = self.measures
        out = io.StringIO()
        writer = csv.writer(out)
        writer.writerow(["setting", *swept, *(f"{name}{end}" for name in names for end in ("", " low", " high"))])
        for one in self.settings:
            cells: list[Any] = [one.name, *(one.swept.get(name, "") for name in swept)]
            for name in names:
                measured = one.measures.get(name)
                ends = None if measured is None else measured.interval
                cells += ["" if measured is None or measured.value is None else measured.value, *(ends or ("", ""))]
            writer.writerow(cells)
        return out.getvalue()

    @property
    def measures(self) -> list[str]:
        """The names of all measures, in their order."""
        return list(dict.fromkeys(name for one in self.settings for name in one.measures))

    def table(self) -> str:
        """Returns the measures as a Markdown table."""
        names = self.measures
        titles = [next(one.measures[name].title for one in self.settings if name in one.measures) for name in names]
        lines = ["| " + " | ".join(["setting", *titles]) + " |", "|" + "---|" * (len(names) + 1)]
        for one in self.settings:
            lines.append("| " + " | ".join([one.name, *(_cell(one.measures.get(name)) for name in names)]) + " |")
        return "\n".join(lines)


def _cell(measured: Measured | None) -> str:
    if measured is None or measured.value is None:
        return ""
    ends = measured.interval
    return f"{measured.value:.4g}" + ("" if ends is None else f" ({ends.low:.4g} to {ends.high:.4g})")


def read(path: str | os.PathLike[str]) -> Evaluation:
    """Returns the evaluation of a JSON file. Raises ValueError, in one sentence, for any other file."""
    name = printable(Path(path))
    text = text_files.read(path, name, MAX_BYTES)
    try:
        found = json.loads(text, parse_constant=_no_constant)
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise ValueError(f'expected a JSON object with "format": "{FORMAT}", as `sdjax evaluate` writes it')
        settings = [_judged(one) for one in _typed(found, "settings", list)]
        if not settings:
            raise ValueError("it has no settings")
        fields = {key: _typed(found, key, kind) for key, kind in (("model", dict), ("captions", str), ("count", int))}
        return Evaluation(settings=tuple(settings), **fields)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is no result of an evaluation: {error or 'it is nested too deeply'}") from None


def _judged(found: Any) -> Judged:
    measures = {}
    for name, one in _typed(found, "measures", dict).items():
        samples = _typed(one, "samples", list)
        value = None if one.get("value") is None else _number(one["value"])
        measures[name] = Measured(
            value, tuple(_number(sample) for sample in samples), _typed(one, "title", str),
            _typed(one, "lower_is_better", bool), _typed(one, "of", str), *_kind(one, value),
        )  # fmt: skip
    return Judged(_typed(found, "name", str), _typed(found, "swept", dict), _typed(found, "settings", dict), measures)


def _kind(found: Mapping[str, Any], value: float | None) -> tuple[Bounds, int | None]:
    """Returns bounds and trials, which results of earlier versions lack."""
    bounds, trials = found.get("bounds", [None, None]), found.get("trials")
    if not isinstance(bounds, list) or len(bounds) != 2:
        raise ValueError(f"bounds is a list of two; got {shown(bounds)}")
    least, most = (None if end is None else _number(end) for end in bounds)
    share = trials is None or (type(trials) is int and trials > 0 and (value is None or 0 <= value <= 1))
    if not share:
        raise ValueError(f"trials is the whole number that a share is of; got {shown(trials)}")
    return (least, most), trials


def _typed(found: Any, key: str, kind: type) -> Any:
    value = found.get(key) if isinstance(found, dict) else None
    if not isinstance(value, kind):
        raise ValueError(f"{key} is a {kind.__name__}; got {shown(value)}")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"expected a number; got {shown(value)}")
    return float(value)


def _no_constant(name: str) -> Any:
    raise ValueError(f"numbers are finite; got {name}")


def measured(
    value: float, samples: Sequence[float] | np.ndarray, *, title: str, lower_is_better: bool, of: str,
    bounds: Bounds = (None, None), trials: int | None = None,
) -> Measured:  # fmt: skip
    """Returns a measure's value. Without all its resamples' values it has none."""
    samples = np.asarray(samples, np.float64)
    kept = tuple(samples.tolist()) if np.isfinite(samples).all() else ()
    return Measured(float(value) if math.isfinite(value) else None, kept, title, lower_is_better, of, bounds, trials)
