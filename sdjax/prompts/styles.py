"""Styles: named additions to prompts, in A1111's styles.csv.

The file has a header line and the columns name, prompt and negative_prompt. `{prompt}` in a style is replaced by the
user's prompt; a style without it is added behind a comma.
"""

import csv
import difflib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sdjax.prompts.language import LONGEST
from sdjax.storage import text_files

MAX_BYTES = 4 * 2**20
NAME = "styles.csv"  # the file that is used if none is named


class Style(NamedTuple):
    """The texts of a style."""

    prompt: str
    negative_prompt: str


def read_styles(path: str | os.PathLike[str] = NAME) -> dict[str, Style]:
    """Returns the styles of a file by name. Raises ValueError if it cannot be read or is no such table."""
    path = Path(path)
    text = text_files.read(path, f"the styles file {path}", MAX_BYTES)
    try:
        rows = list(csv.DictReader(io.StringIO(text, newline=""), restkey="", restval=""))
    except csv.Error as error:
        raise ValueError(f"the styles file {path} is no table of comma-separated values: {error}") from None
    if not rows or not {"name", "prompt"} <= set(rows[0]):
        raise ValueError(f"the styles file {path} must have a header line name,prompt,negative_prompt, and styles")
    return {row["name"]: Style(row["prompt"], row.get("negative_prompt", "")) for row in rows if row["name"]}


def apply_styles(prompt: str, negative_prompt: str, styles: Sequence[Style]) -> tuple[str, str]:
    """Returns prompt and negative prompt with the styles added, in order. Raises ValueError if one becomes too long."""
    for style in styles:
        prompt, negative_prompt = _joined(style.prompt, prompt), _joined(style.negative_prompt, negative_prompt)
    return prompt, negative_prompt


def choose_styles(names: Sequence[str], path: str | os.PathLike[str] = NAME) -> list[Style]:
    """Returns the styles of these names. Raises ValueError for an unknown name, listing the nearest ones."""
    known = read_styles(path) if names else {}
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 5, 0.3) or sorted(known)[:5]
            raise ValueError(f"{os.fspath(path)} has no style {name!r}; it has {', '.join(near)}")
    return [known[name] for name in names]


def _joined(style: str, prompt: str) -> str:
    if count := style.count("{prompt}"):
        if len(style) + count * (len(prompt) - len("{prompt}")) > LONGEST:
            raise ValueError(f"with its styles the prompt has more than {LONGEST} characters; leave out a style")
        return style.replace("{prompt}", prompt)
    return ", ".join(part for part in (prompt.strip(), style.strip()) if part)
