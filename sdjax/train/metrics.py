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
    """What one step works on, all devices together: `images`, and where known `flops`, floating-point operations that
    the model needs (`Flops.model`), and `peak`, the most of them that all devices together do in a second.
    """

    images: int
    flops: float | None = None
    peak: float | None = None

    def of(self, seconds: float) -> dict[str, float]:
        """Returns `images_per_second` for steps of so many seconds and, where known, `flops_per_second` and `mfu`.

        `mfu` is the share of the peak that went into the model, between 0 and 1 (Chowdhery et al. 2022, PaLM,
        arXiv 2204.02311, appendix B).
        """
        values = {"images_per_second": self.images / seconds}
        if self.flops is not None:
            values["flops_per_second"] = self.flops / seconds
            if self.peak is not None:
                values["mfu"] = self.flops / seconds / self.peak
        return values


class Writers:
    """Takes the numbers and pictures of a run of `steps` steps and writes them into its folder and on the console.

    - `log.jsonl`: a line for every call of `scalars`, {"step": n, name: value, ...}. JSON knows finite numbers only:
      null stands for NaN and infinities.
    - `tensorboard/`: the same as events, less what is not finite, and the pictures (needs tensorboardX).
    - `pictures/NAME/STEP.png`: a sheet of pictures, with their captions as text in the file.
    - the console (stderr): a progress bar if `progress`, or None and stderr is a terminal; otherwise a line a minute.

    In a bucket, which cannot append, the files are those of a folder of this computer, copied once a minute, before
    every checkpoint, and at the end.

    A run that goes on from step `first` begins by taking back what was told of later steps, which are done again: lines
    of the log are cut off, and TensorBoard is told to forget (its purge_step).

    Only the first process of several writes; in the others all this does nothing. Raises ModuleNotFoundError if
    `tensorboard` is asked for and tensorboardX is not there.
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
        """Writes numbers of a step. With `seconds`, the time a step takes, come those that `speed` gives."""
        numbers = {name: float(value) for name, value in values.items()}
        if self.speed is not None and numbers.get("seconds", 0.0) > 0:
            numbers |= self.speed.of(numbers["seconds"])
        for output in self._outputs:
            output.scalars(step, numbers)
        if self._mirror is not None and time.monotonic() >= self._mirror.due:
            self.flush()

    def pictures(self, step: int, name: str, pixels: Pixels, captions: Sequence[str]) -> None:
        """Writes pictures, uint8 [n, h, w, 3], made in a step; `name` tells them from others, as "samples".

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
        """Copies what is new into a bucket, where the run's folder is one; else everything is written already.

        What cannot be written is tried again the next time.
        """
        if self._mirror is not None:
            try:
                self._mirror.copy()
            except OSError as error:
                self.say(f"{error}; it is tried again later")

    def close(self) -> None:
        """Writes what is not written yet."""
        for output in self._outputs:
            output.close()
        if self._mirror is not None:
            self._mirror.close()
