"""--sweep: its axes, and the labelled grid with a CSV table beside it."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdjax.scripts.shared import named_files, saving
from sdjax.scripts.shared.made import Made
from sdjax.tasks import recording
from sdjax.tasks.recording import texts

MAX_PLOT = 100_000_000  # most pixels in a labelled grid: 300 MB while it is drawn


def read_axes(args: argparse.Namespace) -> list[Any]:
    """Returns the axes of --sweep (`sdjax.tasks.sweep.Axis`). Raises ValueError for a sweep that cannot be made."""
    from sdjax.tasks import sweep

    try:
        axes = [sweep.read_axis(text, (*args.own, *named_files.settings_of(args))) for text in args.sweep]
        sweep.check_axes(axes)
    except ValueError as error:
        raise ValueError(f"--sweep: {error}") from None
    return axes


def save(folder: Path, axes: Sequence[Any], made: Sequence[Made], watermark: str | None) -> list[Path]:
    """Writes the labelled grid and the table, and returns their paths, such as grid-0000.png and grid-0000.csv.

    The table has a line for each picture: its file, its values and its seed. A grid with too many pixels is not made; a
    note says so.
    """
    from sdjax.pictures import image
    from sdjax.pictures.plot import plot
    from sdjax.tasks import sweep

    height, width = (max(one.picture.shape[axis] for one in made) for axis in (0, 1))
    if height * width * len(made) > MAX_PLOT:
        print(
            f"note: no grid was made, because it would have more than {MAX_PLOT // 10**6} million pixels",
            file=sys.stderr,
        )
        return []
    pixels = saving.mark(plot([one.picture for one in made], [axis.labels() for axis in axes]), watermark)
    names = [axis.label or axis.name for axis in axes]
    values = [list(map(str, one)) for one in sweep.combinations(axes)]
    lines = [
        ["" if one.path is None else one.path.relative_to(folder).as_posix(), *own, one.description["seed"]]
        for one, own in zip(made, values, strict=True)
    ]
    first = made[0].description
    grid = {"axes": names, "pictures": [dict(zip(("file", *names, "seed"), line)) for line in lines]}
    chunks = texts(first) | {"sdjax": recording.to_json({"grid": grid, "task": first["task"]})}
    path = image.save_numbered(folder, pixels, chunks, prefix="grid-", digits=4)
    table = path.with_suffix(".csv")
    image.save_file(table, sweep.to_csv(["file", *names, "seed"], lines).encode())
    return [path, table]
