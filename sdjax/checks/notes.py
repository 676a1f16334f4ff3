"""Notes for users that are not errors. They are warnings in Python and lines on the command line."""

import contextvars
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager

from sdjax.scoped import scoped


class Note(UserWarning):
    """A setting has no effect, or another effect than users may expect."""


class PromptNote(Note):
    """A prompt has syntax of another tool. The command line shows this note once."""


_listener: contextvars.ContextVar[Callable[[str], None] | None] = contextvars.ContextVar("listener", default=None)


def listening(call: Callable[[str], None]) -> AbstractContextManager[object]:
    """Returns a context in which this thread's notes go to a function, and are no warnings."""
    return scoped(_listener, call)


def note(text: str, kind: type[Note] = Note) -> None:
    """Gives a warning. All notes come from this line, so that Python's default filter shows each text once."""
    call = _listener.get()
    if call is not None:
        return call(text)
    warnings.warn(text, kind, stacklevel=1)
