"""The ratios of a merge at each tensor: one for all, by blocks of the UNet, or by patterns of names."""

import dataclasses
import re
from collections.abc import Sequence

from sdjax.checks.arguments import number

_BLOCK = re.compile(r"model\.diffusion_model\.(?:(input|output)_blocks\.(\d+)\.|(middle_block)\.|(out)\.|\w)")
IN, MIDDLE, OUT = 1, 13, 14  # where they begin among 26 numbers
LONGEST_PATTERN = 200
MOST_REPEATS = 3


def block_number(name: str) -> int:
    """Returns a tensor's place among 26 block weights: BASE, IN00 to IN11, M00, OUT00 to OUT11.

    `name` is ldm's. Text encoder and autoencoder are BASE, the time embedding is IN00, the last layers are OUT11, as in
    supermerger.
    """
    found = _BLOCK.match(name)
    if found is None:
        return 0
    if found[3]:
        return MIDDLE
    if found[4]:
        return OUT + 11
    start = OUT if found[1] == "output" else IN
    return start + min(int(found[2] or 0), 11)


@dataclasses.dataclass(frozen=True)
class Ratios:
    """The ratios of a merge. `usual` has one for each model that has a ratio.

    `blocks` are 26 numbers, or 25 without BASE, which replace them. `patterns` are regular expressions with the ratios
    of the tensors in whose names they are found; the first that is found counts, before blocks.

    Raises ValueError for other numbers, and for patterns that could take for ever.
    """

    usual: tuple[float, ...]
    blocks: tuple[float, ...] | None = None
    patterns: tuple[tuple[str, tuple[float, ...]], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "usual", tuple(number("a ratio", ratio) for ratio in self.usual))
        if self.blocks is not None:
            blocks = tuple(number("a block weight", one) for one in self.blocks)
            if len(blocks) not in (25, 26):
                raise ValueError(f"block weights are 25 numbers, or 26 with BASE first; got {len(blocks)}")
            object.__setattr__(self, "blocks", blocks)
        for pattern, ratios in self.patterns:
            check_pattern(pattern)
            if len(ratios) != len(self.usual):
                raise ValueError(f"the pattern {pattern!r} needs {len(self.usual)} ratios; got {len(ratios)}")

    def at(self, name: str) -> tuple[float, ...]:
        """Returns the ratios of a tensor by its name in ldm's files."""
        for pattern, ratios in self.patterns:
            if re.search(pattern, name):
                return ratios
        if self.blocks is None:
            return self.usual
        blocks: Sequence[float | None] = self.blocks if len(self.blocks) == 26 else (None, *self.blocks)
        weight = blocks[block_number(name)]
        return self.usual if weight is None else (weight,) * len(self.usual)


def check_pattern(pattern: str) -> None:
    """Raises ValueError for what is no regular expression, or one that could take for ever.

    A recipe in a file has patterns too, so few repeats are allowed, and none of a group.
    """
    plain = re.sub(r"\\.", "x", pattern)
    repeats = len(re.findall(r"[*+{?]", plain))
    if len(pattern) > LONGEST_PATTERN or repeats > MOST_REPEATS or re.search(r"\)[*+{?]", plain):
        raise ValueError(
            f"a pattern has at most {LONGEST_PATTERN} characters and {MOST_REPEATS} of * + ? {{, none after a group; "
            f"got {pattern[:80]!r}"
        )
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
