"""Notes for users that are not errors. They are warnings in Python and lines on the command line."""

import contextlib
import contextvars
import warnings
from collections.abc import Callable, Iterator


class Note(UserWarning):
    """A setting has no effect, or another effect than users may expect."""


class PromptNote(Note):
    """A prompt has syntax of another tool. The command line shows this note once."""


_listener: contextvars.ContextVar[Callable[[str], None] | None] = contextvars.ContextVar("listener", default=None)


@contextlib.contextmanager
def listening(call: Callable[[str], None]) -> Iterator[None]:
    """Returns a context in which this thread's notes go to a function, and are no warnings."""
    token = _listener.set(call)
    try:
        yield
    finally:
        _listener.reset(token)


def note(text: str, kind: type[Note] = Note) -> None:
    """Gives a warning. All notes come from this line, so that Python's default filter shows each text once."""
    call = _listener.get()
    if call is not None:
        return call(text)
    warnings.warn(text, kind, stacklevel=1)
