r"""Random choices in prompts: `{a|b}` and `__name__`, a line of the file name.txt in a folder of wildcards.

The choices depend on a seed and the text alone. Choices may hold other choices. `\{` and `\}` are text, and so are
braces without a |.

Files and prompts are hostile: a name is looked up among the files that the folder holds, so it never becomes a path.
Sizes, the number of choices and the nesting are bounded.
"""

import fnmatch
import os
import random
import re
from pathlib import Path

from sdjax.checks.notes import note
from sdjax.storage import text_files

MAX_BYTES = 2**20  # of a file
MAX_FILES = 20_000
MAX_CHOICES = 1000  # in one prompt
MAX_LENGTH = 100_000  # characters of an expanded prompt
DEEPEST = 20  # wildcards in wildcards
SHOWN = 3  # names in a note

_NAME = re.compile(r"(?<![\w\\])__([\w*?][\w*?/ .-]{0,200}?)__(?!\w)")
_TOKEN = re.compile(r"\\[{}]|[{}|]|[^\\{}|]+|\\")


class Wildcards:
    """The files of a folder, by the name that prompts use: `animals/cats` for animals/cats.txt."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Raises ValueError if the folder cannot be read or holds too many files."""
        root = Path(folder)
        if not root.is_dir():
            raise ValueError(f"the folder of wildcards {root} does not exist")
        inside = root.resolve()
        self.folder = root
        self.files: dict[str, Path] = {}
        for path in sorted(root.rglob("*.txt")):
            if path.resolve().is_relative_to(inside) and path.is_file():  # no links out of the folder
                self.files[path.relative_to(root).with_suffix("").as_posix()] = path
            if len(self.files) > MAX_FILES:
                raise ValueError(f"the folder of wildcards {root} has more than {MAX_FILES} files")
        self._lines: dict[str, list[str]] = {}

    def lines(self, name: str) -> list[str] | None:
        """Returns the lines of the files of a name, which may have * and ?. None if there is no such file.

        Empty lines and those that start with # are left out. Raises ValueError for files that are too large or no text.
        """
        if name in self.files:
            names = [name]
        else:
            names = fnmatch.filter(self.files, name) if set(name) & set("*?") else []
        return [line for one in names for line in self._read(one)] or None

    def _read(self, name: str) -> list[str]:
        if name not in self._lines:
            path = self.files[name]
            text = text_files.read(path, f"the wildcard file {path}", MAX_BYTES)
            lines = (line.strip() for line in text_files.lines(text))
            self._lines[name] = [line for line in lines if line and not line.startswith("#")]
        return self._lines[name]


def expand(text: str, seed: int, wildcards: Wildcards | None = None) -> str:
    """Returns the text with its random choices made. Without `wildcards`, `__name__` stays.

    A name without a file stays too, and a note names it. Another note says if a bound stopped the choices. Raises
    ValueError for a wildcard file that cannot be read.
    """
    choices = _Choices(random.Random(seed), wildcards)
    out = choices.expand(text, 0)
    if choices.unknown:
        names = ", ".join(f"__{name}__" for name in sorted(choices.unknown)[:SHOWN])
        place = "without a folder of wildcards" if wildcards is None else f"without such a file in {wildcards.folder}"
        note(f"{names} stays in the prompt as text {place}")
    if choices.left <= 0:
        note(f"a prompt has more than {MAX_CHOICES} random choices, or they nest too deeply; the rest stays as text")
    return out


class _Choices:
    """Random choices, and how many are left."""

    def __init__(self, draws: random.Random, wildcards: Wildcards | None) -> None:
        self.draws, self.wildcards = draws, wildcards
        self.left = MAX_CHOICES
        self.room = MAX_LENGTH
        self.unknown: set[str] = set()

    def expand(self, text: str, depth: int) -> str:
        """Returns a text with its choices made; `depth` is the number of wildcards that it is a line of."""
        return _NAME.sub(lambda match: self._line(match, depth), self._braces(text))

    def _choose(self, options: list[str]) -> str:
        # random() draws the same numbers in every version of Python; choice() need not
        return options[int(self.draws.random() * len(options))]

    def _line(self, match: re.Match[str], depth: int) -> str:
        lines = None if self.wildcards is None else self.wildcards.lines(match[1])
        if lines is None:
            self.unknown.add(match[1])
            return match[0]
        if self.left <= 0 or self.room <= 0 or depth >= DEEPEST:
            self.left = 0
            return match[0]
        self.left -= 1
        line = self._choose(lines)
        self.room -= len(line)
        return self.expand(line, depth + 1)

    def _braces(self, text: str) -> str:
        """Returns the text with `{a|b}` replaced, the innermost braces first."""
        opened: list[list[list[str]]] = [[[]]]  # of each open brace: its options, each a list of texts
        for token in _TOKEN.findall(text):
            if token == "{":
                opened.append([[]])
            elif token == "}" and len(opened) > 1:
                options = ["".join(option) for option in opened.pop()]
                is_choice = len(options) > 1 and self.left > 0
                self.left -= len(options) > 1
                opened[-1][-1].append(self._choose(options) if is_choice else "{" + "|".join(options) + "}")
            elif token == "|" and len(opened) > 1:
                opened[-1].append([])
            else:
                opened[-1][-1].append(token[1:] if token in ("\\{", "\\}") else token)
        whole, *unclosed = ("|".join("".join(option) for option in options) for options in opened)
        return whole + "".join("{" + options for options in unclosed)
