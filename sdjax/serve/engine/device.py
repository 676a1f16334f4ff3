"""The one thread that computes: it advances pictures of one kind together, kind by kind, and makes calls in between.

A picture joins at the next chunk of rows and leaves when its rows end. Kinds take turns; so do pictures of one kind, if
there are more than fit. Encoding and decoding are calls; a call and a chunk follow each other in turn.
"""

import collections
import contextvars
import dataclasses
import itertools
import queue
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from jax.sharding import Mesh

from sdjax.nn.jax_settings import pinned
from sdjax.samplers.rule import State
from sdjax.serve.engine.compiling import Programs
from sdjax.serve.engine.entries import Entry, Kind, power
from sdjax.serve.engine.work import Cancelled, Closing

T = TypeVar("T")

PATIENCE = 0.1  # seconds until a job that waits for the device looks whether it was cancelled
stopping: contextvars.ContextVar[Callable[[], bool]] = contextvars.ContextVar("stopping", default=lambda: False)


@dataclasses.dataclass
class Measured:
    """What the device did: chunks of a number of pictures, and the seconds that they took."""

    chunks: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)
    seconds: float = 0.0
    calls: int = 0


class Device:
    """Runs everything on the devices of `mesh`, at most `most` pictures at once."""

    def __init__(self, mesh: Mesh, most: int) -> None:
        self.mesh, self.most, self.measured = mesh, most, Measured()
        self._ready = threading.Condition()
        self.called: set[Hashable] = set()  # the programs of calls that are compiled
        self._calls: collections.deque[tuple[Callable[[], Any], Future[Any]]] = collections.deque()
        self._entries: list[Entry] = []
        self._turns: dict[Kind, float] = {}
        self._clock = itertools.count(1)
        self._sampled = True
        self.latest: Entry | None = None  # the last picture that joined
        self._closed = False
        self.programs = Programs(mesh, self._wake)
        self._thread = threading.Thread(target=self._loop, name="sdjax device", daemon=True)
        self._thread.start()

    def call(self, function: Callable[[], T]) -> T:
        """Returns function(), computed on the device's thread in turn with others. Raises Closing once it is closed."""
        if threading.current_thread() is self._thread:
            return function()
        future: Future[T] = Future()
        with self._ready:
            if self._closed:
                raise Closing
            self._calls.append((function, future))
            self._ready.notify()
        return future.result()

    def sampling(self, entries: Sequence[Entry]) -> Iterator[list[State]]:
        """Yields the states of pictures after each chunk of their rows. Closing the iterator lets them leave."""
        with self._ready:
            if self._closed:
                raise Closing
            self._entries.extend(entries)
            self.latest = entries[-1]
            self._ready.notify()
        latest: list[Any] = [None] * len(entries)
        try:
            for number in range(max(len(one.chunks) for one in entries)):
                for i, one in enumerate(entries):
                    if number < len(one.chunks):
                        result = self._next_of(one)
                        if isinstance(result, BaseException):
                            raise result
                        latest[i] = result
                yield list(latest)
        finally:
            with self._ready:
                for one in entries:
                    one.left = True
                    if one in self._entries:
                        self._entries.remove(one)

    def _next_of(self, one: Entry) -> State | BaseException:
        """Returns the next result of a picture. Raises Cancelled if its job is cancelled before."""
        while True:
            try:
                return one.results.get(timeout=PATIENCE)
            except queue.Empty:
                if stopping.get()():
                    raise Cancelled from None

    @property
    def busy(self) -> int:
        """The number of pictures that are being sampled."""
        return len(self._entries)

    def close(self) -> None:
        """Stops after the present chunk. Whoever waits gets Closing."""
        with self._ready:
            self._closed = True
            self._ready.notify()
        self.programs.close()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _loop(self) -> None:
        with pinned():
            while True:
                with self._ready:
                    if self._closed:
                        break
                    group = [] if self._calls and self._sampled else self._next_group()
                    call = self._calls.popleft() if self._calls and not group else None
                    self._sampled = call is None
                    if call is None and not group:
                        self._ready.wait()
                        continue
                if call is not None:
                    self._run_call(*call)
                else:
                    self._run_chunk(group)
        with self._ready:
            for _, future in self._calls:
                future.set_exception(Closing())
            for one in self._entries:
                one.results.put(Closing())
            self._calls.clear()
            self._entries.clear()

    def _run_call(self, function: Callable[[], Any], future: "Future[Any]") -> None:
        self.measured.calls += 1
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    def _next_group(self) -> list[Entry]:
        """Returns the pictures to advance next: of the kind that waited longest, those that waited longest.

        It is empty if no picture can be advanced before its program is compiled.
        """
        kinds: dict[Kind, list[Entry]] = {}
        for one in self._entries:
            kinds.setdefault(one.kind, []).append(one)
        self._turns = {kind: turn for kind, turn in self._turns.items() if kind in kinds}
        for kind in sorted(kinds, key=lambda kind: self._turns.get(kind, 0.0)):
            waiting = sorted(kinds[kind], key=lambda one: one.served)[: self.most]
            try:
                group = waiting[: self.programs.find(waiting)]
            except BaseException as error:
                self._fail(waiting, error)
                continue
            if group:
                now = float(next(self._clock))
                self._turns[kind] = now
                for one in group:
                    one.served = now
                return group
        return []

    def _fail(self, entries: list[Entry], error: BaseException) -> None:
        for one in entries:
            self._entries.remove(one)
            one.results.put(error)

    def _wake(self) -> None:
        with self._ready:
            self._ready.notify()

    def _run_chunk(self, group: list[Entry]) -> None:
        started = time.perf_counter()
        try:
            states: Sequence[State | BaseException] = self.programs.advance(group)
        except BaseException as error:
            if len(group) > 1 and "RESOURCE_EXHAUSTED" in str(error):
                self.most = power(len(group)) // 2  # fewer at once fit into the device's memory
                return
            states = [error] * len(group)
        self.measured.chunks[len(group)] += 1
        self.measured.seconds += time.perf_counter() - started
        with self._ready:
            for one, state in zip(group, states, strict=True):
                one.at += 1
                over = one.at == len(one.chunks)
                if isinstance(state, BaseException):
                    over = True
                else:
                    one.state = state
                if over and one in self._entries:
                    self._entries.remove(one)
                if not one.left:
                    one.results.put(state)
