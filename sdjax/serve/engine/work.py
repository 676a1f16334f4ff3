"""What the engine is asked to make, what it tells about it, and what comes out."""

import dataclasses
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from sdjax.typing import Pixels

JSON: TypeAlias = "None | bool | int | float | str | Sequence[JSON] | Mapping[str, JSON]"
ENDED = ("done", "failed", "cancelled")  # states of a job that is over
KINDS = ("waiting", "started", "progress", "preview", "picture", "note", "node", *ENDED)  # of events


@dataclasses.dataclass(frozen=True, eq=False)
class Work:
    """One thing to make.

    `task` is a name of `sdjax.serve.engine.tasks.TASKS`. `settings` are JSON: names of `sdjax.tasks.settings` and of
    the task's own arguments. Files are named as the library names them. `inputs` are opened pictures, uint8
    [h, w, 3 or 4], and masks, uint8 [h, w]; settings refer to them by name. `model` is the library's name of a
    checkpoint, None for the current one. Works of one `client` share its turn. Higher `priority` goes first. `save`
    keeps the pictures among the outputs and in the history.
    """

    task: str
    settings: Mapping[str, JSON]
    inputs: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    model: str | None = None
    client: str = ""
    priority: int = 0
    save: bool = True


@dataclasses.dataclass(frozen=True)
class Event:
    """Something that happened to a job. `kind` is one of KINDS.

    `data` by kind: waiting {position}; progress {done, total, seconds_left}; preview {pictures: [uint8 arrays]};
    picture {index, picture: Finished}; note {text}; failed {error}; others nothing. A workflow's node adds its own.
    """

    kind: str
    job_id: str
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class Finished:
    """A picture, uint8 [h, w, 3], with the texts of its PNG file, its settings and its seed.

    `name` is its opaque name (`Engine.picture`). `png` is the file's content.
    """

    name: str
    pixels: Pixels
    texts: Mapping[str, str]
    settings: Mapping[str, Any]
    seed: int | None
    png: bytes = dataclasses.field(default=b"", repr=False)


@dataclasses.dataclass(frozen=True)
class Record:
    """A picture of the history. `id` is its job's, `size` its (height, width), `created` seconds since 1970."""

    id: str
    name: str
    created: float
    task: str
    settings: Mapping[str, Any]
    seed: int | None
    size: tuple[int, int]


class Full(RuntimeError):
    """Too many works wait. `retry_after` is the number of seconds after which there may be room."""

    def __init__(self, waiting: int, retry_after: float) -> None:
        super().__init__(f"{waiting} requests wait already, as many as may: try again in {retry_after:.0f} seconds")
        self.retry_after = retry_after


class UnknownJob(KeyError):
    """There is no job with this id."""


class UnknownPicture(KeyError):
    """There is no picture with this name."""


class Cancelled(Exception):
    """The job was cancelled: its task stops."""


class Closing(Exception):
    """The engine stops: the job goes back to those that wait."""


def new_id() -> str:
    """Returns a random name of 128 bits for a URL."""
    return secrets.token_urlsafe(16)
