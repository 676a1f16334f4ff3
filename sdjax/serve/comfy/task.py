"""The engine's task "workflow": a graph in a job, with the library's models and the engine's batches."""

import dataclasses
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from sdjax._version import __version__
from sdjax.pictures.image import encode_png
from sdjax.pipeline.model import Pipeline
from sdjax.serve.comfy.checking import check
from sdjax.serve.comfy.graph import read_api_form
from sdjax.serve.comfy.host import Cancelled
from sdjax.serve.comfy.kept_files import is_latent, keep
from sdjax.serve.comfy.plain_host import INPUTS, KINDS
from sdjax.serve.comfy.running import Cache, NodeError, run
from sdjax.serve.engine.joined import JoinedPipeline
from sdjax.serve.engine.work import Cancelled as JobCancelled
from sdjax.serve.engine.work import Finished, Work
from sdjax.serve.uploads import Uploads

if TYPE_CHECKING:
    from sdjax.serve.engine.context import Context
    from sdjax.serve.library import Library

T = TypeVar("T")
MOST_SHOWN = 256 * 2**20  # bytes of pictures that are shown and not saved
MOST_TOLD = 500  # jobs whose nodes are remembered
MOST_CACHES = 8  # clients whose last run is remembered


@dataclasses.dataclass(eq=False)
class Memory:
    """What workflows leave in memory: pictures that were only shown, each client's last run, what happened to nodes."""

    shown: Uploads = dataclasses.field(default_factory=lambda: Uploads(MOST_SHOWN))
    caches: OrderedDict[str, Cache] = dataclasses.field(default_factory=OrderedDict)
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)
    _told: "OrderedDict[str, list[dict[str, Any]]]" = dataclasses.field(default_factory=OrderedDict)
    _listeners: dict[str, Callable[[dict[str, Any]], None]] = dataclasses.field(default_factory=dict)

    def tell(self, job: str, **data: Any) -> None:
        """Tells what happens to a node of a job, to who listens now and to who listens later. Progress is not kept."""
        with self.lock:
            if data["what"] != "progress":
                self._told.setdefault(job, []).append(data)
            while len(self._told) > MOST_TOLD:
                self._listeners.pop(self._told.popitem(last=False)[0], None)
            if job in self._listeners:
                self._listeners[job](data)

    def listen(self, job: str, call: Callable[[dict[str, Any]], None]) -> None:
        """Calls a function, which must not wait, with what happened to a job's nodes and with what will happen."""
        with self.lock:
            for data in self._told.setdefault(job, []):
                call(data)
            self._listeners[job] = call

    def take(self, client: str) -> Cache:
        """Returns a client's cache for one run; a new one if another run has it."""
        with self.lock:
            return self.caches.pop(client, None) or Cache(keeps_models=False)

    def give_back(self, client: str, cache: Cache) -> None:
        """Keeps a client's cache for the next run."""
        with self.lock:
            self.caches[client] = cache
            while len(self.caches) > MOST_CACHES:
                self.caches.popitem(last=False)

    def clear(self) -> None:
        """Forgets all runs."""
        with self.lock:
            self.caches.clear()


_memories: weakref.WeakKeyDictionary[Any, Memory] = weakref.WeakKeyDictionary()  # of each engine's models


def memory_of(models: Any) -> Memory:
    """Returns the memory that belongs to an engine's models."""
    return _memories.setdefault(models, Memory())


@dataclasses.dataclass(eq=False)
class LibraryNames:
    """The names that a graph may use: those of the library, and of the pictures and latents that came with it.

    A latent is the bytes of its file, uint8 [1, n].
    """

    library: "Library"
    pictures: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def names(self, kind: str) -> list[str]:
        """Returns the names of a kind."""
        if kind in INPUTS:
            return sorted(name for name in self.pictures if is_latent(name) == (kind == "latent"))
        if kind not in KINDS:
            return []
        return [entry.name for entry in self.library.entries(kind)]

    def has(self, kind: str, name: str) -> bool:
        """Returns whether a name stands for a file."""
        if kind in INPUTS:
            return name in self.pictures and is_latent(name) == (kind == "latent")
        try:
            return kind in KINDS and self.library.find(kind, name) is not None
        except ValueError:
            return False


@dataclasses.dataclass(eq=False)
class EngineHost(LibraryNames):
    """A graph's surroundings in a job of the engine."""

    context: "Context | None" = None
    memory: Memory = dataclasses.field(default_factory=Memory)
    description: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    saving: str = ""  # the id of the node that saves

    @property
    def _job(self) -> "Context":
        assert self.context is not None
        return self.context

    def checkpoint(self, name: str) -> Pipeline:
        """Returns a model of the library, whose sampling joins that of other jobs."""
        return self._job.pipe(name)

    def file(self, kind: str, name: str) -> Path:
        """Returns a file of the library."""
        return Path(self.library.find(kind, name).path)

    def picture(self, name: str) -> np.ndarray:
        """Returns a picture that came with the graph, uint8 [h, w, 4]."""
        if name not in self.pictures:
            raise ValueError(f"there is no picture {name[:200]!r}: upload it first")
        return np.asarray(self.pictures[name])

    def latent(self, name: str) -> bytes:
        """Returns a file of latents that came with the graph."""
        if name not in self.pictures:
            raise ValueError(f"there is no file {name[:200]!r}: upload it first")
        return np.asarray(self.pictures[name]).tobytes()

    def prepared(self, pipe: Pipeline) -> Pipeline:
        """Returns a pipeline that computes in turn with other jobs."""
        return pipe if isinstance(pipe, JoinedPipeline) else JoinedPipeline.of(pipe, self._job.models.device)

    def call(self, function: Callable[[], T]) -> T:
        """Returns the result of a function that computes, in turn with other jobs."""
        result: T = self._job.call(function)
        return result

    def save(self, pixels: np.ndarray, prefix: str, texts: Mapping[str, str], *, keep: bool) -> dict[str, str]:
        """Keeps a picture among the outputs, or in memory alone."""
        loaded = self._job.loaded
        if loaded is not None and loaded.checker is not None:
            (pixels,), _ = self._job.call(loaded.checker.censor, [pixels])
        if not keep:
            name = self.memory.shown.add(encode_png(pixels, texts))
            return {"filename": f"{name}.png", "subfolder": "", "type": "temp"}
        made = self._job.finish(pixels, {**self.description, "node": self.saving}, texts)
        return {"filename": f"{made.name}.png", "subfolder": "", "type": "output"}

    def keep(self, folder: str, prefix: str, suffix: str, write: Callable[[Path], None]) -> dict[str, str]:
        """Has a file written below the server's outputs."""
        return keep(self._job.outputs, folder, prefix, suffix, write)

    def progress(self, number: str, done: int, total: int) -> None:
        """Reports a node's progress as the job's."""
        self.memory.tell(self._job.job.id, what="progress", node=number, done=done, total=total)
        self._job.progress(done, total)

    def preview(self, number: str, pixels: np.ndarray) -> None:
        """Shows the present state of a node."""
        self._job.preview(pixels)

    def node(self, kind: str, number: str, ui: Mapping[str, Any] | None = None) -> None:
        """Tells what happens to a node."""
        if kind == "executing":
            self.saving = number
        self.memory.tell(self._job.job.id, what=kind, node=number, ui=ui)

    def cancelled(self) -> bool:
        """Returns whether the job was cancelled."""
        return self._job.cancelled()


def check_work(work: Work, library: "Library") -> None:
    """Raises ValueError for a graph that cannot be run."""
    check(read_api_form(work.settings.get("prompt")), LibraryNames(library, _pictures(work)))


def run_workflow(work: Work, context: "Context") -> list[Finished]:
    """Runs the graph of a work: `prompt` in API form, and `workflow` as the editor wants to find it in pictures.

    `pictures` are the names of the graph's pictures and latents, by the names of the work's inputs.
    """
    prompt, workflow = work.settings.get("prompt"), work.settings.get("workflow")
    memory = memory_of(context.models)
    description = {"task": "workflow", "versions": {"sdjax": __version__}}
    host = EngineHost(context.library, _pictures(work), context, memory, description)
    checked = check(read_api_form(prompt), host)
    cache = memory.take(work.client)
    try:
        run(checked, host, cache, workflow if isinstance(workflow, Mapping) else None)
    except Cancelled:
        raise JobCancelled from None
    except NodeError as error:
        reason = context.plain(error.reason)
        memory.tell(context.job.id, what="error", node=error.number, kind=error.kind, reason=reason)
        raise
    finally:
        memory.give_back(work.client, cache)
    return list(context.job.pictures)


def _pictures(work: Work) -> dict[str, Any]:
    """Returns the graph's pictures by the names that it uses."""
    names = work.settings.get("pictures")
    if not isinstance(names, Mapping):
        return {}
    return {str(name): work.inputs[key] for key, name in names.items() if key in work.inputs}
