"""Changes a caption each time that it is shown: shuffles its tags, leaves some out, puts text before and after it."""

import dataclasses
import hashlib
from collections.abc import Callable

import numpy as np

from sdjax.checks.effects import needs

TAGS_CHANGE: tuple[Callable[["CaptionConfig"], bool], str] = (
    lambda c: c.shuffle or c.tag_dropout > 0,
    "without shuffle or tag_dropout",
)


@dataclasses.dataclass(frozen=True)
class CaptionConfig:
    """The changes of a caption. By default there are none.

    - `prefix`, `suffix`: texts before and after the caption, with a space between.
    - `shuffle`: tags, the texts between separators, get a random order. `tag_dropout`: the share of tags left out.
    - `keep`: the number of first tags that stay in their places. `keep_separator`: a mark such as "|||". What is before
      its first occurrence stays, and what is after its second; then `keep` does not count. The mark is removed.
    - `second_separator`: a mark such as ";;;" within a tag. It becomes `separator` after shuffling.

    The tags are joined by ", ". The random numbers of a caption depend only on the run's seed, the picture's key and
    how often it was shown. Source: kohya-ss/sd-scripts (library/train_util.py: process_caption).
    """

    prefix: str = ""
    suffix: str = ""
    shuffle: bool = False
    tag_dropout: float = 0.0
    keep: int = needs(0, *TAGS_CHANGE)
    keep_separator: str | None = None
    separator: str = ","
    second_separator: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.tag_dropout <= 1:
            raise ValueError(f"tag_dropout lies between 0 and 1; got {self.tag_dropout}")
        if self.keep < 0:
            raise ValueError(f"keep is a number of tags, 0 or more; got {self.keep}")
        if "" in (self.separator, self.keep_separator, self.second_separator):
            raise ValueError("a separator has at least one character; None means no such separator")

    @property
    def changes(self) -> bool:
        """Whether any caption may change."""
        return self != UNCHANGED

    def fixed(self) -> "CaptionConfig":
        """Returns the changes without the random ones, for validation."""
        return dataclasses.replace(self, shuffle=False, tag_dropout=0.0, keep=0)

    def __call__(self, caption: str, seed: int, key: str, visit: int) -> str:
        """Returns the caption of the `visit`-th showing of the record `key`."""
        caption = " ".join(part for part in (self.prefix, caption, self.suffix) if part)
        mark = self.keep_separator
        parted = mark is not None and mark in caption
        if TAGS_CHANGE[0](self) or parted:
            before, free, after = self._parts(caption, mark if parted else None)
            caption = ", ".join([*before, *self._drawn(free, seed, key, visit), *after])
        return caption if self.second_separator is None else caption.replace(self.second_separator, self.separator)

    def _parts(self, caption: str, mark: str | None) -> tuple[list[str], list[str], list[str]]:
        """Returns the tags that stay first, those that may change, and those that stay last."""
        if mark is None:
            tags = self._tags(caption)
            return tags[: self.keep], tags[self.keep :], []
        before, free, *after = caption.split(mark, 2)
        return self._tags(before), self._tags(free), self._tags(after[0]) if after else []

    def _tags(self, text: str) -> list[str]:
        return [tag for part in text.split(self.separator) if (tag := part.strip())]

    def _drawn(self, tags: list[str], seed: int, key: str, visit: int) -> list[str]:
        name = f"{seed}/{visit}/{key}/tags".encode("utf-8", "replace")
        numbers = np.frombuffer(hashlib.shake_256(name).digest(16 * len(tags)), "<u8").reshape(2, -1)
        order = np.argsort(numbers[0], kind="stable").tolist() if self.shuffle else range(len(tags))
        kept = (numbers[1] >> np.uint64(11)) * 2.0**-53 >= self.tag_dropout
        return [tags[i] for i in order if kept[i]]


UNCHANGED = CaptionConfig()
