"""The model cards' figure: one measure against another over guidance scales, a line for each sampler."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sdjax.evaluate.result import Evaluation, Judged, Measured
from sdjax.storage.files import new_file

WITHOUT_MATPLOTLIB = "the figure is drawn with matplotlib: in the clone of sdjax, pip install '.[figures]'"
WITHOUT_AXES = (
    "no figure is drawn, because it needs a score and a distance: give the file of a network that measures the other "
    "one, or name two measures by --figure"
)
INK, FAINT = "#282828", "#cdcdcd"
BESIDE = ((4, 3), (4, -3), (-4, 3), (-4, -3))  # where the labels of each line's points are, in typographic points


def has_matplotlib() -> bool:
    """Returns whether matplotlib is installed. It is not imported."""
    return importlib.util.find_spec("matplotlib") is not None


def axes_of(evaluation: Evaluation) -> tuple[str, str] | None:
    """Returns the measures across and up of the figure: the first score, and the first distance.

    A score is better if it is higher, a distance if it is lower. None if one is missing.
    """
    found: dict[bool, str] = {}
    for one in evaluation.settings:
        for name, measured in one.measures.items():
            found.setdefault(measured.lower_is_better, name)
    return (found[False], found[True]) if len(found) == 2 else None


def draw(evaluation: Evaluation, across: str, up: str, path: Path) -> list[Path]:
    """Writes the figure as PNG and SVG beside each other, at `path` with these endings, and returns both paths.

    The points of a line differ in the sweep's first value, which stands beside them; each combination of the other
    values is a line. Bars show confidence. The same evaluation gives the same bytes.

    Raises ValueError if no setting has both measures, or matplotlib is not installed.
    """
    if not has_matplotlib():
        raise ValueError(WITHOUT_MATPLOTLIB)
    lines = lines_of(evaluation, across, up)
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "sdjax", "font.size": 10}):
        figure = Figure(figsize=(6.4, 4.8), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        for number, (label, points) in enumerate(lines.items()):
            beside = BESIDE[number % len(BESIDE)]
            one, other = ([point.measures[name] for point in points] for name in (across, up))
            x, y = (np.array([found.value for found in some], float) for some in (one, other))
            (line,) = axes.plot(x, y, marker="o", markersize=4, linewidth=1.5, label=label or None, zorder=3)
            axes.errorbar(
                x, y, xerr=_bars(one), yerr=_bars(other), fmt="none", ecolor=line.get_color(), elinewidth=0.6,
                capsize=2, alpha=0.35,
            )  # fmt: skip
            for point, left, top in zip(points, x, y, strict=True):
                axes.annotate(
                    _first(point), (left, top), xytext=beside, textcoords="offset points", fontsize=8,
                    ha="left" if beside[0] > 0 else "right", va="bottom" if beside[1] > 0 else "top", color=INK,
                )  # fmt: skip
        some = next(iter(lines.values()))[0].measures
        axes.set_xlabel(_label(some[across]))
        axes.set_ylabel(_label(some[up]))
        axes.grid(color=FAINT, linewidth=0.5)
        axes.set_axisbelow(True)
        if any(lines):
            axes.legend(frameon=False)
        if swept := list(evaluation.settings[0].swept):
            axes.set_title(f"{evaluation.model.get('name', '')}, {evaluation.count} captions; points: {swept[0]}")
        written = []
        for ending in ".png", ".svg":
            to = path.with_suffix(ending)
            with new_file(to, overwrite=True, what="writing the figure") as partial:
                clean: dict[str, Any] = {"Software": None} if ending == ".png" else {"Date": None}
                figure.savefig(partial, format=ending[1:], metadata=clean)
            written.append(to)
    return written


def lines_of(evaluation: Evaluation, across: str, up: str) -> dict[str, list[Judged]]:
    """Returns the lines of the figure by their labels: the settings that have a value of both measures.

    Raises ValueError if there are none.
    """
    lines: dict[str, list[Judged]] = {}
    for one in evaluation.settings:
        if all(name in one.measures and one.measures[name].value is not None for name in (across, up)):
            others = list(one.swept.items())[1:]
            lines.setdefault(", ".join(f"{name} {value}" for name, value in others), []).append(one)
    if not lines:
        found = ", ".join(evaluation.measures) or "nothing"
        raise ValueError(f"no setting has both {across} and {up}; what was measured is {found}")
    return lines


def _first(one: Judged) -> str:
    return str(next(iter(one.swept.values()), ""))


def _bars(found: Sequence[Measured]) -> list[list[float]] | None:
    """Returns the lengths of error bars, down and up; None without confidence."""
    lengths = []
    for one in found:
        ends = one.interval
        if ends is None or one.value is None:
            return None
        lengths.append((max(one.value - ends.low, 0.0), max(ends.high - one.value, 0.0)))
    return [list(side) for side in zip(*lengths)]


def _label(one: Measured) -> str:
    return f"{one.title} ({'lower' if one.lower_is_better else 'higher'} is better)"
