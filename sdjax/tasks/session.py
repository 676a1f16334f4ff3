"""Sessions: pictures that are being made. Iterate a session for progress; it has previews and can be cancelled."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol

import jax
import numpy as np

from sdjax.checks.hints import explains_arguments
from sdjax.nn.jax_settings import pinned
from sdjax.pipeline.model import Pipeline
from sdjax.pipeline.preview import check_taesd, preview
from sdjax.samplers import State
from sdjax.tasks.computing import Computing
from sdjax.tasks.request import Request
from sdjax.tasks.results import Pictures, advice, joined
from sdjax.typing import Latent, Pixels

if TYPE_CHECKING:
    from sdjax.tasks.batch import Batch
    from sdjax.tasks.resolve import Resolved

P = ParamSpec("P")


class Interrupted(KeyboardInterrupt):
    """Ctrl-C while pictures were being made. `pictures` has the finished ones in order, and None for the others."""

    def __init__(self, pictures: list[np.ndarray | None]) -> None:
        super().__init__("interrupted")
        self.pictures = pictures


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """The progress of a group of pictures after a few more calls of the network.

    `calls`: number of these calls. `state`: the samplers' state. `finished`: pictures of the group that have no calls
    left. `which`: the numbers of the group's pictures. `done` and `total`: calls of the whole session, so far and in
    all.
    """

    batch: "Batch"
    calls: int
    state: State
    finished: tuple[int, ...]
    which: tuple[int, ...] = ()
    done: int = 0
    total: int = 0

    @property
    def latent(self) -> Latent:
        """The network's last prediction of the latents without noise, [b, h, w, c]."""
        return self.state.x0[: len(self.batch.requests)]

    def preview(self) -> Pixels:
        """Returns pictures of `latent`, uint8 [b, h, w, 3]: small ones, one pixel per entry, or by the batch's `taesd`.

        See `sdjax.pipeline.preview`.
        """
        return preview(self.batch.pipe, self.latent, self.batch.how.preview_decoder)


Making = Generator[Step, bool | None, np.ndarray]  # of a group's pictures [b, h, w, 3]


class Session:
    """Pictures that are being made: `for step in session` makes them, a few calls of the network at a time.

    Each `Step` reports progress. `preview()` shows the present state, `cancel()` stops, and `result()` finishes the
    rest and returns the pictures in order. Every task has a `session` with the same arguments, such as
    `sdjax.text_to_image.session(...)`; it returns the session.
    """

    def __init__(
        self,
        batch: "Batch",
        make: Callable[["Batch"], Making],
        finish: Callable[[int, np.ndarray], np.ndarray] = lambda i, picture: picture,
        *,
        groups: Sequence[Sequence[int]] | None = None,
        calls: Sequence[int] | None = None,
        collect: Callable[[Sequence[np.ndarray | None]], list[np.ndarray | None]] = list,
    ) -> None:
        """`make` makes the pictures of one of the `groups`. `finish(i, picture)` returns the final picture i.

        `calls` are the numbers of network calls of each group. `collect` makes the result of all final pictures.
        """
        if batch.how.preview_decoder is not None:
            check_taesd(batch.how.preview_decoder, batch.pipe.config)
        self._batch, self._make, self._collect = batch, make, collect
        self._finish = finish if batch.how.output == "pixels" else lambda i, latent: latent
        self._groups = batch.groups() if groups is None else groups
        self._parts = [batch.part(which) for which in self._groups]
        self.total = sum([part.calls for part in self._parts] if calls is None else calls)
        self._stop = False
        self._steps = self._run()
        self._step: Step | None = None
        self.pictures: list[np.ndarray | None] = [None] * len(batch.requests)

    def __iter__(self) -> Iterator[Step]:
        return self

    def __next__(self) -> Step:
        step = self._advance()
        jax.block_until_ready(step.state)
        return step

    @property
    def requests(self) -> "list[Resolved]":
        """The settings of all pictures, with the model's defaults."""
        return self._batch.requests

    @property
    def step(self) -> Step | None:
        """The last step, None before the first."""
        return self._step

    def preview(self) -> list[np.ndarray | None]:
        """Returns for each picture: the picture if it is finished, a preview if it was started, else None."""
        shown: list[np.ndarray | None] = [None] * len(self.pictures)
        if self._batch.how.output == "pixels":
            shown = list(self.pictures)
        if self._step is not None:
            for i, small in zip(self._step.which, self._step.preview(), strict=True):
                shown[i] = small if shown[i] is None else shown[i]
        return shown

    def cancel(self) -> None:
        """Stops before the next call of the network. Pictures that have no calls left are still finished."""
        self._stop = True

    def result(self) -> Pictures | list[np.ndarray | None]:
        """Returns the pictures, uint8 [b, h, w, 3], or a list of [h, w, 3] if sizes differ.

        After `cancel` it is a list with None for unfinished pictures. Raises `Interrupted` on Ctrl-C, and whatever the
        task raises.
        """
        try:
            while True:
                self._advance()
        except StopIteration:
            pass
        except KeyboardInterrupt as error:
            self._stop = True
            with pinned():
                next(self._steps, None)  # pictures that have no calls left are still finished
            raise Interrupted(self._collect(self.pictures)) from error
        pictures = self._collect(self.pictures)
        made = [picture for picture in pictures if picture is not None]
        return joined(made) if len(made) == len(pictures) else pictures

    def _advance(self) -> Step:
        with pinned():
            step = next(self._steps)
        how = self._batch.how
        if how.progress is not None or how.on_step is not None:
            jax.block_until_ready(step.state)
        if how.progress is not None:
            how.progress(step.done, step.total)
        if how.on_step is not None:
            how.on_step(step)
        return step

    def _run(self) -> Iterator[Step]:
        done = 0
        for which, part in zip(self._groups, self._parts):
            if self._stop:
                return
            with advice(*part.size, len(which), part.pipe.dtype):
                making = self._make(part)
                stop: bool | None = None
                kept: Sequence[int] = range(len(which))
                while True:
                    try:
                        step = making.send(stop)
                    except StopIteration as end:
                        made = end.value
                        break
                    done += step.calls
                    finished = tuple(k for k in step.finished if k < len(which))
                    step = dataclasses.replace(
                        step, batch=part, which=tuple(which), finished=finished, done=done, total=self.total
                    )
                    self._step = step
                    yield step
                    stop = self._stop
                    if stop:
                        kept = step.finished
                        if not kept:
                            making.close()
                            return
            for k in kept:
                self.pictures[which[k]] = self._finish(which[k], made[k])
            self._step = None


def with_defaults(signature: inspect.Signature) -> inspect.Signature:
    """Returns a task's signature with the options' defaults from `Request` and `Computing`."""
    fields = [*dataclasses.fields(Request), *dataclasses.fields(Computing)]
    defaults = {"num_images": 1, **{field.name: field.default for field in fields}}
    parameters = signature.parameters.values()
    return signature.replace(
        parameters=[p.replace(default=defaults[p.name]) if p.default is ... else p for p in parameters]
    )


class Task(Protocol[P]):
    """A function that makes pictures. Its `session` has the same arguments and returns a Session."""

    __name__: str

    def __call__(self, pipe: Pipeline, *args: P.args, **options: P.kwargs) -> Pictures: ...

    def session(self, pipe: Pipeline, *args: P.args, **options: P.kwargs) -> Session: ...


def task(also: Callable | None = None) -> Callable[[Callable[Concatenate[Pipeline, P], Session]], Task[P]]:
    """Returns a decorator that turns a function returning a session into a task returning the session's result.

    Our JAX settings are active while it works. Wrong arguments are explained (`explains_arguments`, with `also`).
    """

    def decorate(begin: Callable[Concatenate[Pipeline, P], Session]) -> Task[P]:
        explained: Any = explains_arguments(also)(pinned()(begin))

        @functools.wraps(explained)
        def made(*args: Any, **options: Any) -> Pictures:
            return explained(*args, **options).result()

        done: Any = made
        done.session = explained
        explained.__signature__ = with_defaults(inspect.signature(explained))
        done.__signature__ = explained.__signature__.replace(return_annotation=Pictures)
        return done

    return decorate
