"""What users should know of their settings and is no error: a warning from Python, a line on the command line."""

import warnings


class Note(UserWarning):
    """Something that was asked for and will not happen as one might expect."""


def note(text: str) -> None:
    """Warns. All notes come from this line, so that Python's usual filter shows each text once in a process."""
    warnings.warn(text, Note, stacklevel=1)
