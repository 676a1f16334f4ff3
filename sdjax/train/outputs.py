"""The outputs of a run's numbers and pictures: JSON lines, TensorBoard, picture files, console, progress bar."""

import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from sdjax.errors import doing
from sdjax.pictures.image import WRITING, encode_png, grid
from sdjax.storage import files
from sdjax.storage.files import write_file
from sdjax.typing import Pixels

TENSORBOARD = "writing TensorBoard's events into"
LINES_EVERY = 60.0  # seconds between two lines without a progress bar


class Output:
    """An output of a run. Subclasses show the numbers, the pictures or both."""

    def scalars(self, step: int, values: dict[str, float]) -> None:
        pass

    def pictures(self, step: int, name: str, pixels: Pixels, captions: Sequence[str]) -> None:
        pass

    def close(self) -> None:
        pass


class JSONLines(Output):
    """The JSON lines."""

    def __init__(self, path: pathlib.Path, first: int):
        cut_log(path, first)
        self.path = path

    def scalars(self, step: int, values: dict[str, float]) -> None:
        known = {name: value if math.isfinite(value) else None for name, value in values.items()}
        line = json.dumps({"step": step, **known}, allow_nan=False) + "\n"
        with doing("writing the log", self.path, len(line)):
            files.append(self.path, line.encode())


def cut_log(path: str | os.PathLike, last: int) -> None:
    """Removes from a log of JSON lines the steps after `last`, and incomplete lines.

    The file is replaced in one operation, so that nothing is lost if this is interrupted. A missing file is ignored.
    """
    path = pathlib.Path(path)
    if not path.exists():
        return
    with doing("reading the log", path):
        lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if _is_up_to(line, last)]
    if kept == lines:
        return
    write_file(path, b"".join(kept), overwrite=True, what="writing the log")


def _is_up_to(line: bytes, last: int) -> bool:
    try:
        return line.endswith(b"\n") and json.loads(line)["step"] <= last
    except (ValueError, KeyError, TypeError):
        return False


class TensorBoard(Output):
    """TensorBoard's events, written directly: tensorboardX's own writer uses a thread, and hangs if it fails."""

    def __init__(self, folder: pathlib.Path, first: int):
        check_tensorboard()
        from tensorboardX import event_file_writer, summary
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self.folder, self.event, self.summary = folder, Event, summary
        with doing(TENSORBOARD, folder):
            folder.mkdir(parents=True, exist_ok=True)
            self.events = event_file_writer.EventsWriter(str(folder / "events"))
        self._write(first + 1, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            if math.isfinite(value):
                self._write(step, summary=self.summary.scalar(name, value))

    def pictures(self, step: int, name: str, pixels: Pixels, captions: Sequence[str]) -> None:
        for i, picture in enumerate(pixels):
            self._write(step, summary=self.summary.image(f"{name}/{i}", picture, dataformats="HWC"))
        listed = "\n".join(f"{i}. {caption}" for i, caption in enumerate(captions))
        self._write(step, summary=self.summary.text(f"{name}/captions", listed))

    def close(self) -> None:
        events, self.events = self.events, None
        if events is not None:
            with doing(TENSORBOARD, self.folder):
                events.close()

    def _write(self, step: int, **content: Any) -> None:
        event = self.event(wall_time=time.time(), step=step, **content)
        with doing(TENSORBOARD, self.folder, event.ByteSize()):
            self.events.write_event(event)
            self.events.flush()


def check_tensorboard() -> None:
    """Raises ModuleNotFoundError if TensorBoard's events cannot be written."""
    try:
        import tensorboardX  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'{error}; install it (pip install "sdjax[train] @ git+ADDRESS", or ".[train]" in its clone), or '
            "train with log.tensorboard = False"
        ) from None


class PictureSheets(Output):
    """Pictures as files."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder

    def pictures(self, step: int, name: str, pixels: Pixels, captions: Sequence[str]) -> None:
        path = self.folder / name / f"{step:08d}.png"
        data = encode_png(grid(pixels, math.ceil(len(pixels) ** 0.5)), {"captions": "\n".join(captions)})
        write_file(path, data, overwrite=True, what=WRITING)  # one may exist from before the run was resumed


class Console(Output):
    """A line every minute, for the last step, and for every message."""

    def __init__(self, steps: int):
        self.steps, self.due = steps, 0.0

    def scalars(self, step: int, values: dict[str, float]) -> None:
        if "seconds" not in values:
            self.say(f"step {step}: " + ", ".join(f"{name} {value:.4g}" for name, value in values.items()))
        elif time.monotonic() >= self.due or step == self.steps:
            self.due = time.monotonic() + LINES_EVERY
            self.say(f"step {step} of {self.steps}: {_progress(values)}, {self.left(step, values)} left")

    def left(self, step: int, values: Mapping[str, float]) -> str:
        """Returns the remaining time, from the time of a step without compiling."""
        return duration((self.steps - step) * values["seconds"])

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


class ProgressBar(Console):
    """A progress bar."""

    def __init__(self, steps: int, first: int):
        from tqdm.auto import tqdm

        super().__init__(steps)
        # tqdm's own estimate would count the time that compiling took
        shown = "{l_bar}{bar}| {n_fmt}/{total_fmt} steps{postfix}"
        self.bar = tqdm(total=steps, initial=first, bar_format=shown, dynamic_ncols=True, file=sys.stderr)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        if "seconds" not in values:
            return super().scalars(step, values)
        self.bar.set_postfix_str(f"{_progress(values)}, {self.left(step, values)} left", refresh=False)
        self.bar.update(step - self.bar.n)

    def say(self, text: str) -> None:
        self.bar.write(text, file=sys.stderr)

    def close(self) -> None:
        self.bar.close()


def _progress(values: Mapping[str, float]) -> str:
    """Returns "loss 0.123, rate 1e-05, 45.6 images/s, MFU 38.1 %", as far as known."""
    parts = [
        text.format(scale * values[name])
        for name, text, scale in (
            ("loss", "loss {:.4g}", 1.0), ("learning_rate", "rate {:.3g}", 1.0),
            ("images_per_second", "{:.3g} images/s", 1.0), ("mfu", "MFU {:.1f} %", 100.0),
        )
        if name in values
    ]  # fmt: skip
    return ", ".join(parts) or f"{values['seconds']:.3g} s/step"


def duration(seconds: float) -> str:
    """Returns a time in its two largest units: "2 d 3 h", "3 h 20 min", "5 min 10 s", "12 s"."""
    if not math.isfinite(seconds):
        return "unknown time"
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    rest, parts = max(round(seconds), 0), []
    for name, size in units:
        count, rest = divmod(rest, size)
        parts.append((count, name))
    first = next((i for i, (count, _) in enumerate(parts) if count), len(parts) - 1)
    shown = [f"{count} {name}" for count, name in parts[first : first + 2] if count or name == parts[first][1]]
    return " ".join(shown)
