"""Notes: what users should know but is no error. A warning in Python, a line on the command line."""

import warnings


class Note(UserWarning):
    """A setting that does not do what one might expect."""


class PromptNote(Note):
    """A prompt that another tool would read in another way. The command line shows it once."""


def note(text: str, kind: type[Note] = Note) -> None:
    """Warns. All notes come from this line, so that Python's usual filter shows each text once in a process."""
    warnings.warn(text, kind, stacklevel=1)
