"""Run logging: speed, and one writer for all outputs of numbers and pictures."""

import dataclasses
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from sdjax.errors import doing
from sdjax.loading.run_layout import workdir
from sdjax.storage import addresses
from sdjax.train.checkpoints.mirror import Mirror
from sdjax.train.outputs import Console, JSONLines, Output, PictureSheets, ProgressBar, TensorBoard
from sdjax.typing import Pixels


@dataclasses.dataclass(frozen=True)
class Speed:
    """The work of one step on all devices together.

    `images` is the number of pictures and `flops` the floating-point operations that the model needs (`Flops.model`).
    `peak` is the peak rate of all devices together, in operations per second. The last two are None if not known.
    """

    images: int
    flops: float | None = None
    peak: float | None = None

    def of(self, seconds: float) -> dict[str, float]:
        """Returns `images_per_second` and, if known, `flops_per_second` and `mfu`, for a step of this many seconds.

        `mfu` is the share of the peak that the model used, between 0 and 1 (Chowdhery et al. 2022, PaLM,
        arXiv 2204.02311, appendix B).
        """
        values = {"images_per_second": self.images / seconds}
        if self.flops is not None:
            values["flops_per_second"] = self.flops / seconds
            if self.peak is not None:
                values["mfu"] = self.flops / seconds / self.peak
        return values


class Writers:
    """Writes the numbers and pictures of a run of `steps` steps to its folder and the console.

    - `log.jsonl`: a line for every call of `scalars`, {"step": n, name: value, ...}. JSON has only finite numbers, so
      null stands for NaN and infinities.
    - `tensorboard/`: the finite numbers and the pictures as events (needs tensorboardX).
    - `pictures/NAME/STEP.png`: a sheet of pictures, with their captions as text in the file.
    - The console (stderr): a progress bar if `progress` is True, or None and stderr is a terminal; otherwise a line a
      minute.

    A bucket cannot append to files. For a bucket, the files are written to a local folder and copied once a minute,
    before every checkpoint, and at the end.

    A run that resumes at step `first` repeats the later steps. So their lines are removed from the log, and TensorBoard
    drops their events (its purge_step).

    If there are several processes, only the first writes; in the others nothing happens. Raises ModuleNotFoundError if
    `tensorboard` is True and tensorboardX is not installed.
    """

    def __init__(
        self, folder: str | os.PathLike, steps: int, *, first: int = 0, speed: Speed | None = None,
        tensorboard: bool = True, progress: bool | None = None,
    ):  # fmt: skip
        self.folder, self.speed = workdir(folder), speed
        self._outputs: list[Output] = []
        self._console: Console | None = None
        self._mirror: Mirror | None = None
        if jax.process_index() != 0:
            return
        if addresses.remote(folder):
            self._mirror = Mirror(self.folder, "log.jsonl")
            self.folder = self._mirror.folder
        with doing("making the run's folder", self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self._outputs.append(JSONLines(self.folder / "log.jsonl", first))
        if tensorboard:
            self._outputs.append(TensorBoard(self.folder / "tensorboard", first))
        self._outputs.append(PictureSheets(self.folder / "pictures"))
        bar = sys.stderr.isatty() if progress is None else progress
        self._console = ProgressBar(steps, first) if bar else Console(steps)
        self._outputs.append(self._console)

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes the numbers of a step. If they include `seconds`, the time of a step, `speed`'s numbers are added."""
        numbers = {name: float(value) for name, value in values.items()}
        if self.speed is not None and numbers.get("seconds", 0.0) > 0:
            numbers |= self.speed.of(numbers["seconds"])
        for output in self._outputs:
            output.scalars(step, numbers)
        if self._mirror is not None and time.monotonic() >= self._mirror.due:
            self.flush()

    def pictures(self, step: int, name: str, pixels: Pixels, captions: Sequence[str]) -> None:
        """Writes pictures, uint8 [n, h, w, 3], made in a step, under a name such as "samples".

        Raises ValueError unless there is a caption for each.
        """
        if len(captions) != len(pixels):
            raise ValueError(f"every picture has a caption; got {len(pixels)} pictures and {len(captions)} captions")
        for output in self._outputs:
            output.pictures(step, name, pixels, captions)

    def say(self, text: str) -> None:
        """Prints a line on the console, above the progress bar if there is one."""
        if self._console is not None:
            self._console.say(text)

    def flush(self) -> None:
        """Copies new data into the bucket if the run's folder is in one; otherwise everything is already written.

        A failed copy is tried again next time.
        """
        if self._mirror is not None:
            try:
                self._mirror.copy()
            except OSError as error:
                self.say(f"{error}; sdjax will try again later")

    def close(self) -> None:
        """Writes everything that is not written yet, and closes the outputs."""
        for output in self._outputs:
            output.close()
        if self._mirror is not None:
            self._mirror.close()
