"""What a task sees of the engine: the model, the library, and where progress and pictures go."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sdjax.convert.parts.taesd import LoadedTAESD
from sdjax.pictures.image import encode_png
from sdjax.pipeline.model import Pipeline
from sdjax.serve.engine.job import Job
from sdjax.serve.engine.work import Cancelled, Finished
from sdjax.tasks import recording

if TYPE_CHECKING:
    from sdjax.serve.engine.models import Loaded, Models
    from sdjax.serve.library import Library

PATH = re.compile(r"(?<![\w.:/\\])(?:/|[A-Za-z]:\\)(?:[^\s/\\'\",;:]+[/\\])+")  # the folders of an absolute path


@dataclasses.dataclass(eq=False)
class Context:
    """The surroundings of one job. `stem` begins the names of its pictures; `keep` writes a picture's file.

    `outputs` is the folder of the server's outputs, for other files.
    """

    job: Job
    library: "Library"
    models: "Models"
    stem: str
    keep: Callable[[str, bytes], None]
    outputs: Path
    taesd: LoadedTAESD | None = None
    most: int = 8
    loaded: "Loaded | None" = None

    def pipe(self, name: str | None = None, **parts: Any) -> Pipeline:
        """Returns a model of the library, None: the job's own. Its calls of the network join those of other jobs.

        `parts` are further arguments of `sdjax.load`, such as `vae`.
        """
        self.check()
        self.loaded = self.models.lease(self.job.id, name or self.job.work.model, **parts)
        for notice in self.loaded.pipe.notices:
            self.note(notice)
        return self.loaded.pipe

    def call(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Returns the result of a function that computes on the device, in turn with other jobs."""
        return self.models.device.call(lambda: function(*args, **options))

    def progress(self, done: int, total: int) -> None:
        """Reports progress, in calls of the network. Raises Cancelled if the job was cancelled."""
        self.job.set_progress(done, total)
        self.check()

    def preview(self, pixels: np.ndarray | list[np.ndarray]) -> None:
        """Shows the present state, uint8 [h, w, 3] or a list."""
        shown = [pixels] if isinstance(pixels, np.ndarray) else list(pixels)
        self.job.set_preview(lambda: shown)

    def note(self, text: str) -> None:
        """Gives the user a note."""
        self.job.add_note(self.plain(text))

    def cancelled(self) -> bool:
        """Returns whether the job was cancelled."""
        return self.job.cancelling

    def check(self) -> None:
        """Raises Cancelled if the job was cancelled."""
        if self.job.cancelling:
            raise Cancelled

    def finish(
        self, pixels: np.ndarray, description: Mapping[str, Any], texts: Mapping[str, str] | None = None
    ) -> Finished:
        """Returns a finished picture with the texts that the command line writes, and keeps its file if it is wanted.

        `texts` stand in place of those of the description. Raises OSError if the file cannot be written.
        """
        name = f"{self.stem}-{len(self.job.pictures)}"
        whole = recording.texts(description) if texts is None else texts
        png = encode_png(pixels, whole)
        if self.job.work.save:
            self.keep(name, png)
        made = Finished(name, pixels, whole, dict(description), description.get("seed"), png)
        self.job.add_picture(made)
        return made

    def plain(self, text: str) -> str:
        """Returns a text without folders of this computer: only the names of files stay."""
        return PATH.sub("", text)
