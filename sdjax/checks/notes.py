"""Notes for users that are not errors. They are warnings in Python and lines on the command line."""

import warnings


class Note(UserWarning):
    """A setting has no effect, or another effect than users may expect."""


class PromptNote(Note):
    """A prompt has syntax of another tool. The command line shows this note once."""


def note(text: str, kind: type[Note] = Note) -> None:
    """Gives a warning. All notes come from this line, so that Python's default filter shows each text once."""
    warnings.warn(text, kind, stacklevel=1)
