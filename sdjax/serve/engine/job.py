"""A job: a work with its state, progress, pictures and notes. Other threads read it and watch it."""

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from sdjax.serve.engine.work import ENDED, Event, Finished, Work

MOST_NOTES = 100
PREVIEW_SECONDS = 0.5  # least time between two previews of a job


class Place(Protocol):
    """What knows a job's place among others."""

    def position(self, job: "Job") -> int | None:
        """Returns the job's number in the queue, 0 for the next; None if it does not wait."""
        ...

    def seconds_left(self, job: "Job") -> float | None:
        """Returns how long it will take until the job is done; None if that is not known."""
        ...

    def cancelled(self, job: "Job") -> None:
        """Is called once when somebody cancels the job."""
        ...


class Job:
    """A work under way.

    `done` of `total` calls of the network are made. `error` is a sentence. Only the engine changes a job: it calls the
    methods whose names begin with `set_`, `add_` and `end`.
    """

    def __init__(self, id: str, work: Work, place: Place, *, created: float | None = None) -> None:
        self.id, self.work, self._place = id, work, place
        self.created = time.time() if created is None else created
        self.state = "waiting"
        self.done, self.total = 0, 0
        self.pictures: list[Finished] = []
        self.notes: list[str] = []
        self.error: str | None = None
        self.began: float | None = None
        self.cancelling = False
        self._show: Callable[[], list[np.ndarray]] | None = None
        self._previewed = 0.0
        self._watchers: list[Callable[[Event], None]] = []
        self._changed = threading.Condition()

    @property
    def fraction(self) -> float:
        """The share of the work that is done, from 0 to 1."""
        return 1.0 if self.state == "done" else self.done / self.total if self.total else 0.0

    @property
    def ended(self) -> bool:
        """Whether the job is over."""
        return self.state in ENDED

    @property
    def position(self) -> int | None:
        """The number in the queue, 0 for the next; None if the job does not wait."""
        return self._place.position(self) if self.state == "waiting" else None

    @property
    def seconds_left(self) -> float | None:
        """How long it will take until the job is done, by measured speed; None if that is not known yet."""
        return None if self.ended else self._place.seconds_left(self)

    def previews(self) -> list[np.ndarray]:
        """Returns the present state of the pictures, uint8 [h, w, 3] each: small ones, or whole ones by TAESD."""
        with self._changed:
            show = self._show
        return [] if show is None else show()

    def cancel(self) -> None:
        """Stops the job: at once if it waits, else within a few calls of the network."""
        with self._changed:
            if self.ended or self.cancelling:
                return
            self.cancelling = True
        self._place.cancelled(self)

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until the job is over or the seconds have passed. Returns whether it is over."""
        with self._changed:
            return self._changed.wait_for(lambda: self.ended, timeout)

    def watch(self, call: Callable[[Event], None]) -> Callable[[], None]:
        """Calls a function with every further event, on threads of the engine. Returns what stops that."""
        with self._changed:
            self._watchers.append(call)

        def stop() -> None:
            with self._changed, contextlib.suppress(ValueError):
                self._watchers.remove(call)

        return stop

    def set_started(self) -> None:
        """Notes that the job runs."""
        with self._changed:
            self.state, self.began = "running", time.monotonic()
            self.done, self.total, self.pictures = 0, 0, []
        self.tell("started")

    def set_progress(self, done: int, total: int) -> None:
        """Notes how many calls of the network are made."""
        self.done, self.total = done, total
        self.tell("progress", done=done, total=total, seconds_left=self.seconds_left)

    def set_preview(self, show: Callable[[], list[np.ndarray]] | None) -> None:
        """Takes the function that makes the previews of the present state. Watchers get them now and then."""
        with self._changed:
            self._show = show
            watched = bool(self._watchers)
        if show is None or not watched or time.monotonic() - self._previewed < PREVIEW_SECONDS:
            return
        self._previewed = time.monotonic()
        self.tell("preview", pictures=show())

    def add_picture(self, picture: Finished) -> None:
        """Takes a finished picture."""
        with self._changed:
            self.pictures = [*self.pictures, picture]
        self.tell("picture", index=len(self.pictures) - 1, picture=picture)

    def add_note(self, text: str) -> None:
        """Takes a note for the user, once."""
        if text in self.notes or len(self.notes) >= MOST_NOTES:
            return
        self.notes = [*self.notes, text]
        self.tell("note", text=text)

    def end(self, state: str, error: str | None = None) -> None:
        """Ends the job as "done", "failed" with an error, or "cancelled"."""
        with self._changed:
            if self.ended:
                return
            self.error, self._show = error, None
            self.state = state
            self._changed.notify_all()
        self.tell(state, **({} if error is None else {"error": error}))

    def set_waiting(self) -> None:
        """Puts the job back among those that wait."""
        with self._changed:
            self.state, self._show = "waiting", None

    def tell(self, kind: str, /, **data: Any) -> None:
        """Sends an event to all watchers. One that fails is watched no longer."""
        with self._changed:
            watchers = list(self._watchers)
        for call in watchers:
            try:
                call(Event(kind, self.id, data))
            except Exception:
                with self._changed, contextlib.suppress(ValueError):
                    self._watchers.remove(call)
