"""What users should know of their settings and is no error: a warning from Python, a line on the command line."""

import warnings


class Note(UserWarning):
    """Something that was asked for and will not happen as one might expect."""


class PromptNote(Note):
    """A prompt that another tool would read otherwise: the command line says so once."""


def note(text: str, kind: type[Note] = Note) -> None:
    """Warns. All notes come from this line, so that Python's usual filter shows each text once in a process."""
    warnings.warn(text, kind, stacklevel=1)
