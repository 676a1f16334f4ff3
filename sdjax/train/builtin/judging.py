"""Judging the built-in model: whether its pictures show what captions say, and real pictures to compare with."""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from sdjax.checks.arguments import shown
from sdjax.evaluate.distances import mean_score
from sdjax.evaluate.extractors import Picture
from sdjax.evaluate.measures import Features, Measure
from sdjax.train.builtin import emoji, evaluate, subjects
from sdjax.train.builtin.reader import Reader

NAME = "reader"
CAPTIONS = 1000


def _mean(features: Features, reference: Features | None) -> float:
    return mean_score(features["right"])


READER_ACCURACY = Measure(
    "reader-accuracy", "Accuracy of the reader", NAME, ("right",), False, False, _mean, bounds=(0, 1), counts=True
)


@dataclasses.dataclass(frozen=True, eq=False)
class ReaderFeatures:
    """Whether the reader (`sdjax.train.builtin.reader`) sees in a picture all that its caption names, 1 or 0."""

    sprites: emoji.Sprites
    name: str = NAME
    identity: str = NAME

    @functools.cached_property
    def reader(self) -> Reader:
        """The reader of the sprites."""
        return Reader(self.sprites)

    def __call__(self, pictures: Sequence[Picture], captions: Sequence[str]) -> Mapping[str, Float[np.ndarray, "n d"]]:
        """Returns {"right": [n, 1]}. Raises ValueError for a caption that names something else (`prompt_of`)."""
        shown = [prompt_of(caption) for caption in captions]
        readings = evaluate.read(self.reader, np.stack(list(pictures)), shown)
        right = [evaluate.is_right(reading, prompt) for reading, prompt in zip(readings, shown)]
        return {"right": np.array(right, np.float32)[:, None]}


def prompt_of(caption: str) -> evaluate.Prompt:
    """Returns what a caption such as "a cat and a rocket on a green background" says.

    Raises ValueError for any other caption.
    """
    found = re.fullmatch(r"(.+) on an? (\w+) background", caption.strip())
    colours, names = list(subjects.COLOURS), subjects.names()
    nouns = [] if found is None else [re.sub("^an? ", "", noun) for noun in found[1].split(" and ")]
    if found is None or found[2] not in colours or not set(nouns) <= set(names):
        raise ValueError(
            f'the reader understands captions such as "a cat and a rocket on a green background"; got {shown(caption)}'
        )
    return evaluate.Prompt(caption, tuple(names.index(noun) for noun in nouns), colours.index(found[2]))


def captions(seed: int = 0) -> list[str]:
    """Returns CAPTIONS captions of pairs of subject and colour that were never trained (`evaluate.draw_prompts`)."""
    return [prompt.text for prompt in evaluate.draw_prompts(seed, CAPTIONS, held_out=True)]


def real_pictures(sprites: emoji.Sprites, count: int, seed: int = 0) -> list[Picture]:
    """Returns pictures as the model was trained on, drawn from seeds that training does not use."""
    return [sprites.draw(scene) for scene in emoji.scenes(evaluate.FRESH + seed, 0, count)]
