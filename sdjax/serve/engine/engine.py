"""The engine: takes works, makes them on the device in shared batches, and keeps what must survive a restart."""

import dataclasses
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jax

from sdjax import errors
from sdjax.checks import notes
from sdjax.convert.parts.taesd import load_taesd
from sdjax.loading import builtin
from sdjax.nn.jax_settings import pinned
from sdjax.pictures.image import unpack
from sdjax.pictures.metadata.texts import read_texts
from sdjax.pipeline import cache
from sdjax.pipeline.placement import make_mesh
from sdjax.serve.engine import tasks, warming
from sdjax.serve.engine.context import Context
from sdjax.serve.engine.device import Device, stopping
from sdjax.serve.engine.entries import power
from sdjax.serve.engine.job import Job
from sdjax.serve.engine.models import AUTO, Models
from sdjax.serve.engine.speed import Speed
from sdjax.serve.engine.store import Store
from sdjax.serve.engine.waiting import Waiting
from sdjax.serve.engine.work import Cancelled, Closing, Finished, Full, Record, UnknownJob, Work, new_id

if TYPE_CHECKING:
    from sdjax.serve.library import Library

LOG = logging.getLogger(__name__)
REMEMBERED = 256  # jobs that are over and stay in memory, with their pictures
MOST_BYTES = 2**29  # of these pictures
MODEL = "model"  # the choice of the current model, in the store


class Engine:
    """Makes works. Up to `slots` of them run at once, and up to `waiting` wait.

    `model` is the library's name of the checkpoint for works that name none; None: the one chosen last, or the built-in
    one. `outputs` and `state` are folders for pictures and for the queue. `preview` is "linear", or the library's name
    of a TAESD, for the models that it fits. `devices` are JAX's, None for all of this process. `memory` is how many
    bytes of models may be loaded. `quantise` is that of `sdjax.load`. `safety_checker` is "auto" (the model's own) or
    "off". Jobs that an engine before left in `state` run again.

    Use it from any thread.
    """

    def __init__(
        self, library: "Library", *, model: str | None = None, outputs: Path, state: Path, slots: int = 8,
        waiting: int = 100, dtype: str | None = None, quantise: str = "auto", preview: str = "linear",
        devices: Sequence[jax.Device] | None = None, memory: int | None = None, safety_checker: str = AUTO,
    ) -> None:  # fmt: skip
        cache.enable()
        self.library, self.slots, self.most_waiting = library, slots, waiting
        self.state, self.outputs = Path(state), Path(outputs)
        self._store = Store(self.state, self.outputs)  # first: it refuses a folder that another engine uses
        self._taesd = None if preview == "linear" else load_taesd(library.find("taesd", preview).path)
        self._device = Device(make_mesh(devices), power(slots))
        current = model or self._known(self._store.chosen(MODEL)) or builtin.NAME
        self.models = Models(
            library, self._device, library.find("checkpoint", current).name,
            lambda name: self._store.choose(MODEL, name), dtype=dtype, most=memory, checker=safety_checker,
            quantise=quantise,
        )  # fmt: skip
        self._queue, self._speed = Waiting(), Speed(slots)
        self._lock = threading.RLock()
        self._over: OrderedDict[str, Job] = OrderedDict()
        self._closed = False
        self.warmed = threading.Event()  # whether the warm-up is over
        for id, created, work in self._store.waiting():
            self._queue.put(Job(id, work, self, created=created))
        self._threads = [
            threading.Thread(target=self._run_jobs, name=f"sdjax slot {number}", daemon=True) for number in range(slots)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, work: Work) -> Job:
        """Returns the job of a work. Once this returns, the job survives a restart.

        Raises ValueError for a work that cannot be made, Full if too many wait, OSError if it cannot be kept.
        """
        name = self.models.current if work.model is None else self.library.find("checkpoint", work.model).name
        if work.model is None and name == builtin.NAME and tasks.paints(work):
            name = builtin.INPAINTING
        work = dataclasses.replace(work, model=name)
        tasks.check(work, self.library)
        with self._lock:
            if self._closed:
                raise RuntimeError("the server is stopping: try again when it has started")
            if len(self._queue) >= self.most_waiting:
                raise Full(len(self._queue), self._speed.until_room(len(self._queue.taken())))
            job = Job(new_id(), work, self)
            self._store.add(job.id, job.created, work)
            self._queue.put(job)
        job.tell("waiting", position=job.position)
        return job

    def job(self, id: str) -> Job:
        """Returns a job by its id, also one that is over. Raises UnknownJob."""
        for job in self._queue.all():
            if job.id == id:
                return job
        with self._lock:
            if id in self._over:
                return self._over[id]
        found = self._store.ended(id)
        if found is None:
            raise UnknownJob(id)
        created, state, error, told, work = found
        job = Job(id, work, self, created=created)
        for record in self._store.pictures_of(id):
            png = self._store.picture(record.name)
            picture = Finished(record.name, unpack(png), read_texts(png), record.settings, record.seed, png)
            job.pictures.append(picture)
        job.notes = told
        job.end(state, error)
        return job

    def jobs(self) -> list[Job]:
        """Returns the jobs that run, then those that wait, in order."""
        return [job for job in self._queue.all() if not job.ended]

    def cancel_all(self, client: str | None = None) -> int:
        """Cancels all jobs, or those of one client, and returns their number."""
        jobs = [job for job in self.jobs() if client in (None, job.work.client)]
        for job in reversed(jobs):
            job.cancel()
        return len(jobs)

    def history(self, before: float | None = None, limit: int = 50) -> list[Record]:
        """Returns the newest pictures made before a time, in seconds since 1970; the newest first."""
        return self._store.history(before, limit)

    def forget(self, name: str) -> None:
        """Deletes a picture and its place in the history. Raises UnknownPicture."""
        self._store.forget(name)

    def picture(self, name: str) -> bytes:
        """Returns the PNG file of a picture. Raises UnknownPicture."""
        with self._lock:
            for job in (*self._queue.taken(), *self._over.values()):
                for one in job.pictures:
                    if one.name == name and not job.work.save:
                        return one.png
        return self._store.picture(name)

    def warm_up(self) -> None:
        """Compiles the programs of the current model's own size in the background, before anybody needs them.

        `warmed` is set when that is over, also if the model cannot be read: the first job for it says why.
        """

        def warm_up() -> None:
            try:
                warming.warm_up(self.models, self._device)
            except Exception as problem:
                LOG.error("the warm-up failed: %s", sentence(problem))
            finally:
                self.warmed.set()

        threading.Thread(target=warm_up, name="sdjax warm-up", daemon=True).start()

    @property
    def device(self) -> Device:
        """What computes, with its measurements."""
        return self._device

    def close(self) -> None:
        """Stops at the next chunk. Jobs that wait or run are kept and run again with the next engine."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._queue.close()
        self._device.close()
        for thread in self._threads:
            thread.join()
        self._store.close()

    def position(self, job: Job) -> int | None:
        """Returns a job's number in the queue (`Place`)."""
        return self._queue.position(job)

    def seconds_left(self, job: Job) -> float | None:
        """Returns how long it will take until a job is done, by measured speed (`Place`)."""
        return self._speed.left(job, self._queue.position(job), self._queue.taken())

    def cancelled(self, job: Job) -> None:
        """Ends a job that waits (`Place`). One that runs sees it by itself."""
        if self._queue.remove(job):
            self._end(job, "cancelled", None)

    def _bytes(self) -> int:
        return sum(one.pixels.nbytes + len(one.png) for job in self._over.values() for one in job.pictures)

    def _known(self, name: str | None) -> str | None:
        """Returns the name if the library still has this checkpoint."""
        try:
            return None if name is None else self.library.find("checkpoint", name).name
        except ValueError:
            return None

    def _run_jobs(self) -> None:
        while (job := self._queue.take()) is not None:
            try:
                self._run_job(job)
            finally:
                self.models.release(job.id)
                self._queue.over(job)

    def _run_job(self, job: Job) -> None:
        stem = time.strftime("%Y%m%d-%H%M%S", time.gmtime(job.created)) + f"-{job.id}"
        context = Context(
            job, self.library, self.models, stem, self._store.write, self.outputs, self._taesd, self._device.most
        )
        job.set_started()
        stopping.set(context.cancelled)  # of this thread
        try:
            with pinned(), notes.listening(context.note):
                tasks.TASKS[job.work.task](job.work, context)
            state, error = "done", None
        except Cancelled:
            state, error = "cancelled", None
        except Closing:
            job.set_waiting()
            return
        except Exception as problem:
            state, error = "failed", context.plain(sentence(problem))
        if state == "done":
            self._speed.add(time.monotonic() - (job.began or 0.0))
        self._end(job, state, error)

    def _end(self, job: Job, state: str, error: str | None) -> None:
        """Keeps the end of a job, then tells it."""
        made = {one.name: one for one in job.pictures} if job.work.save else {}
        try:
            self._store.end(job.id, state, error, job.notes, made, job.work.task)
        except OSError as problem:
            LOG.error("%s", problem)
            state, error = ("failed", str(problem)) if state == "done" else (state, error)
        with self._lock:
            self._over[job.id] = job
            while len(self._over) > 1 and (len(self._over) > REMEMBERED or self._bytes() > MOST_BYTES):
                self._over.popitem(last=False)
        job.end(state, error)


def sentence(error: Exception) -> str:
    """Returns what a user is told about an error."""
    if isinstance(error, OSError):
        return errors.sentence(error)
    if isinstance(error, ValueError | MemoryError):
        return str(error)
    LOG.exception("a job failed", exc_info=error)
    return f"an error inside the server ({type(error).__name__}): its log says more"
