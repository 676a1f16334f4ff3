"""The nearest known name, for errors about an unknown one. Imports nothing slow, for the command line."""

import difflib
from collections.abc import Iterable

LONGEST = 100  # characters of a name that is compared


def nearest(name: object, known: Iterable[str]) -> str | None:
    """Returns the known name that is most similar to this one; None if none is similar enough.

    Upper and lower case are alike, and so are spaces, dashes and underscores.
    """
    if not isinstance(name, str) or len(name) > LONGEST:
        return None
    by_plain = {_plain(one): one for one in known}
    found = difflib.get_close_matches(_plain(name), by_plain, 1, 0.6)
    return by_plain[found[0]] if found else None


def meant(name: object, known: Iterable[str]) -> str:
    """Returns " (did you mean X?)" with the nearest known name, or "" if none is similar enough."""
    near = nearest(name, known)
    return "" if near is None else f" (did you mean {near}?)"


def _plain(name: str) -> str:
    return name.casefold().replace("_", "-").replace(" ", "-").strip("-")
