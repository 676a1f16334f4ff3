"""Reads what the documents tell a reader to type: commands, Python, links."""

import dataclasses
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in PAGES if "_build" not in page.parts]

_FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Command:
    """One command of a page: its words, comments left out."""

    page: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: {shlex.join(self.words)}"


def blocks(text: str, *languages: str) -> list[str]:
    """Returns the contents of the fenced blocks of these languages ("" for none)."""
    return [body for language, body in _FENCE.findall(text) if language.strip() in languages]


def prose(text: str) -> str:
    """Returns a page without its fenced blocks."""
    return _FENCE.sub("", text)


def commands() -> Iterator[Command]:
    """Yields every command in a block of shell lines, and every `sdjax ...` that fills a table's cell."""
    for page in PAGES:
        text, name = page.read_text(encoding="utf-8"), page.relative_to(ROOT).as_posix()
        lines = [line for block in blocks(text, "sh", "") for line in block.replace("\\\n", " ").splitlines()]
        lines += re.findall(r"\| `(sdjax [^`]+)`(?= \|)", prose(text))
        for line in lines:
            words = shlex.split(line, comments=True)
            while words and re.match(r"[A-Z_]+=", words[0]):  # settings for the command alone
                del words[0]
            if words:
                yield Command(name, tuple(words))


def mentions() -> Iterator[Command]:
    """Yields every `sdjax COMMAND ...` within a sentence, which may leave out what the command needs."""
    for page in PAGES:
        for line in re.findall(r"`(sdjax [a-z][^`]*)`", prose(page.read_text(encoding="utf-8"))):
            yield Command(page.relative_to(ROOT).as_posix(), tuple(shlex.split(line)))


def links() -> Iterator[tuple[Path, str]]:
    """Yields (page, target) for every link and picture that is no address of the web."""
    for page in PAGES:
        text = prose(page.read_text(encoding="utf-8"))
        for target in [*re.findall(r"\]\(([^()\s]+)\)", text), *re.findall(r'(?:src|href)="([^"]+)"', text)]:
            if not re.match(r"[a-z]+:", target):
                yield page, target


def anchors(page: Path) -> set[str]:
    """Returns the names by which the headings of a page can be linked to, as GitHub and MyST make them."""
    headings = re.findall(r"^#+ (.+)$", prose(page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
