"""Where a graph runs, and what a node's function may use of it."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from jaxtyping import UInt8

from sdjax.pipeline.model import Pipeline
from sdjax.serve.comfy.graph import Graph

Pixels = UInt8[np.ndarray, "h w c"]
T = TypeVar("T")


class Cancelled(Exception):
    """The run was cancelled."""


class Host(Protocol):
    """Where a graph runs: its files, and who is told what happens. Names come from the graph and are only looked up."""

    def names(self, kind: str) -> list[str]:
        """Returns the names of the library's files of a kind; "input" are pictures to work on, "latent" latents."""
        ...

    def has(self, kind: str, name: str) -> bool:
        """Returns whether a name stands for a file of a kind."""
        ...

    def checkpoint(self, name: str) -> Pipeline:
        """Returns the model of this name. Raises ValueError if there is none."""
        ...

    def prepared(self, pipe: Pipeline) -> Pipeline:
        """Returns a pipeline that a node made, ready to compute here."""
        ...

    def file(self, kind: str, name: str) -> Path:
        """Returns the file of this name. Raises ValueError if there is none."""
        ...

    def picture(self, name: str) -> Pixels:
        """Returns an input picture, uint8 [h, w, 4] with its opacity. Raises ValueError if there is none."""
        ...

    def latent(self, name: str) -> bytes:
        """Returns the file of an input latent. Raises ValueError if there is none."""
        ...

    def call(self, function: Callable[[], T]) -> T:
        """Returns the result of a function that computes."""
        ...

    def save(self, pixels: Pixels, prefix: str, texts: Mapping[str, str], *, keep: bool) -> dict[str, str]:
        """Keeps a picture, and returns {"filename", "subfolder", "type"}. Not `keep`: only to be looked at."""
        ...

    def keep(self, folder: str, prefix: str, suffix: str, write: Callable[[Path], None]) -> dict[str, str]:
        """Has a new file written into a folder of the outputs, as `sdjax.serve.comfy.kept_files.keep`."""
        ...

    def progress(self, number: str, done: int, total: int) -> None:
        """Is told how far a node is."""
        ...

    def preview(self, number: str, pixels: Pixels) -> None:
        """Is shown the present state of a node."""
        ...

    def node(self, kind: str, number: str, ui: Mapping[str, Any] | None = None) -> None:
        """Is told that a node was "cached", is "executing", or was "executed" with this to show."""
        ...

    def cancelled(self) -> bool:
        """Returns whether the run must stop."""
        ...


@dataclasses.dataclass(eq=False)
class Run:
    """What a node's function may use: the host, the node's id, and the graph that is written into pictures."""

    host: Host
    number: str
    graph: Graph
    workflow: Mapping[str, Any] | None = None

    def texts(self) -> dict[str, str]:
        """Returns what is written into files: the graph, and the editor's own form of it."""
        texts = {"prompt": json.dumps(self.graph.to_json())}
        return texts if self.workflow is None else {**texts, "workflow": json.dumps(self.workflow)}

    def progress(self, done: int, total: int) -> None:
        """Reports how far the node is. Raises Cancelled if the run must stop."""
        if self.host.cancelled():
            raise Cancelled
        self.host.progress(self.number, done, total)

    def preview(self, pixels: Callable[[], Pixels]) -> None:
        """Shows the present state."""
        self.host.preview(self.number, pixels())
